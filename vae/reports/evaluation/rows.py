"""How the table writes a number: with its standard error, and – where there is none."""

from typing import Any, TypeGuard

from vae.runs.files import finite_number

Metrics = dict[str, Any]
NONE = "–"


def known(value: Any) -> TypeGuard[float]:
    """Whether this is a number; evaluation.json has null for one that is not finite or resolved."""
    return finite_number(value) is not None


def number(value: Any, digits: int = 2) -> str:
    """1,234.56, or – where it is not known."""
    return f"{value:,.{digits}f}" if known(value) else NONE


def p_value(p: Any) -> str:
    """p = 0.123, p < 0.001, or that it is not known."""
    if not known(p):
        return "p not known"
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def row(name: str, f: Metrics, key: str, note: str = "", digits: int = 2) -> str:
    """Name, value, ± standard error where it has one, and a remark."""
    error = f.get(f"{key}_se")
    spread = f" ± {error:.{digits}f}" if known(error) and known(f.get(key)) else ""
    return f"{name:<40}{number(f.get(key), digits):>10}{spread:<11}{note}".rstrip()
