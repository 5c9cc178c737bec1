"""The colours of every picture, chart and page; distinguishable on white, also in a slide."""

TRAIN, VAL = "#4477aa", "#ee7733"
ORACLE = "#222222"  # what is known exactly: closed forms, thresholds
COLLAPSED = "#bbbbbb"  # latents that carry nothing

# One a run, in the order of the runs; the second dozen is dashed, the third dotted and dashed.
RUN_COLOURS = (
    *("#4477aa", "#ee7733", "#228833", "#aa3377", "#0e9fb3", "#a8780a"),
    *("#5b3fb0", "#d11f2f", "#7a9a1e", "#7b4f2c", "#11325c", "#717d8c"),
)
DASHES = ("-", "--", "-.")


def run_colour(place: int) -> str:
    """The colour of the run at this place, counted from 0."""
    return RUN_COLOURS[place % len(RUN_COLOURS)]


def run_dashes(place: int) -> str:
    """Its line style, matplotlib's: solid for the first dozen."""
    return DASHES[place // len(RUN_COLOURS) % len(DASHES)]
