"use strict";

// Looks up what each threshold does: every figure was computed where the page was written.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  if (!data.thresholds) return;
  const slider = document.getElementById("threshold");
  const all = (selector) => [...document.querySelectorAll(selector)];
  const percent = (tenths) => `${Math.floor(tenths / 10)}.${tenths % 10}%`;

  // What a place of the page shows of a set at a threshold; texts are as those that it came with.
  const shown = {
    threshold: (set, at) => data.thresholds[at],
    count: (set, at) => set.flagged[at].toLocaleString("en-US"),
    flagged: (set, at) => percent(set.share[at]),
    kept: (set, at) => percent(1000 - set.share[at]),
    right: (set, at, role) => percent(role === "id" ? 1000 - set.share[at] : set.share[at]),
    interval: (set, at, role) => {
      const ends = [set.low[at], set.high[at]];
      const [low, high] = role === "id" ? ends.reverse().map((end) => 1000 - end) : ends;
      return `${percent(low)} to ${percent(high)}`;
    },
  };

  const fields = all("[data-show]");
  const lines = all("[data-line]");
  const labels = all("[data-label]");
  const clips = all("[data-clip]");
  const dots = all("[data-dot]");

  function show(at) {
    for (const field of fields) {
      const { set, show, role } = field.dataset;
      field.textContent = shown[show](data.sets[set], at, role);
    }
    const x = data.at[at];
    for (const line of lines) {
      line.setAttribute("x1", `${x / 10}%`);
      line.setAttribute("x2", `${x / 10}%`);
    }
    for (const label of labels) {
      const left = x > 500;
      label.setAttribute("x", `${x / 10}%`);
      label.setAttribute("dx", left ? -6 : 6);
      label.setAttribute("text-anchor", left ? "end" : "start");
    }
    for (const clip of clips) clip.setAttribute("width", x);
    for (const dot of dots) {
      const set = data.sets[dot.dataset.dot];
      dot.setAttribute("cx", 100 * (1 - set.flagged[at] / set.n));
      dot.setAttribute("cy", 100 * (data.known.flagged[at] / data.known.n));
    }
    const kept = data.known ? `, keeps ${percent(1000 - data.known.share[at])} of ID images` : "";
    slider.setAttribute("aria-valuetext", `${data.thresholds[at]}${kept}`);
  }

  function move(at) {
    slider.value = at;
    show(at);
  }

  slider.addEventListener("input", () => show(Number(slider.value)));
  document.getElementById("reset").addEventListener("click", () => move(data.start));

  // A press on the figure moves the threshold there, and a drag takes it along.
  for (const figure of all("[data-drag]")) {
    const nearest = (event) => {
      const box = figure.getBoundingClientRect();
      const x = (1000 * (event.clientX - box.left)) / box.width;
      let best = 0;
      data.at.forEach((place, at) => {
        if (Math.abs(place - x) < Math.abs(data.at[best] - x)) best = at;
      });
      return best;
    };
    figure.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const drag = (moved) => move(nearest(moved));
      const end = new AbortController();
      drag(event);
      addEventListener("pointermove", drag, end);
      for (const name of ["pointerup", "pointercancel"]) {
        addEventListener(name, () => end.abort(), end);
      }
    });
  }

  // Paper has nothing to open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    for (const part of closed) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
  });

  // A reload may bring an old place of the slider along.
  document.getElementById("slider").hidden = false;
  move(data.start);
})();
