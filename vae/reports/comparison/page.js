"use strict";
// Videos: one button and one slider for all. The first one leads; others that slip by a frame and a half are set right.
const player = document.getElementById("player");
if (player) {
  const videos = [...document.querySelectorAll("video")];
  const [button, slider, shown] = ["play", "step", "at"].map((id) => document.getElementById(id));
  const rate = Number(player.dataset.rate), last = Number(slider.max);
  for (const video of videos) { // some browsers play a blob but no data: address
    const bytes = Uint8Array.from(atob(video.getAttribute("src").split(",")[1]), (c) => c.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  }
  let playing = false;
  const show = (step) => { slider.value = step; shown.textContent = step; };
  const seek = (step) => { for (const video of videos) video.currentTime = (step + 0.5) / rate; show(step); };
  const stop = () => { playing = false; for (const video of videos) video.pause(); button.textContent = "▶ Play all"; };
  const follow = () => {
    if (!playing) return;
    const time = videos[0].currentTime;
    show(Math.min(last, Math.floor(time * rate)));
    for (const video of videos) if (Math.abs(video.currentTime - time) > 1.5 / rate) video.currentTime = time;
    if (videos[0].ended) { stop(); seek(last); } else requestAnimationFrame(follow);
  };
  button.addEventListener("click", () => {
    if (playing) return stop();
    if (Number(slider.value) >= last) seek(0);
    playing = true;
    button.textContent = "❚❚ Pause all";
    Promise.all(videos.map((video) => video.play())).then(follow, stop);
  });
  slider.addEventListener("input", () => { stop(); seek(Number(slider.value)); });
  player.hidden = false;
}

// Tables: a click on a heading sorts, another one turns the order round. Cells without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[column].dataset.value ?? "";
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const sign = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return down ? -sign : sign;
    };
    for (const other of headings) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(order));
  }));
}
