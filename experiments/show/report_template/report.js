"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const percent = (share) => `${Math.round(share * 100)} %`;

// Methods: a colour and a shape a family, hollow for the slow one, as in the figures --------------------------------

const colour = (name) => data.looks[name].colour;
/** By matplotlib's letter, the outline about (0, 0), of radius 1. */
const SHAPES = {
  o: "M-1 0A1 1 0 0 1 1 0A1 1 0 0 1 -1 0Z",
  s: "M-.9 -.9H.9V.9H-.9Z",
  "^": "M0 -1.2L1.15 .9H-1.15Z",
  v: "M0 1.2L1.15 -.9H-1.15Z",
  D: "M0 -1.3L1.3 0L0 1.3L-1.3 0Z",
  P: "M-.45 -1.2H.45V-.45H1.2V.45H.45V1.2H-.45V.45H-1.2V-.45H-.45Z",
  X: "M-1.1 -.5L-.5 -1.1L0 -.6L.5 -1.1L1.1 -.5L.6 0L1.1 .5L.5 1.1L0 .6L-.5 1.1L-1.1 .5L-.6 0Z",
};

/** The method's mark as SVG elements, of radius r about (x, y). */
function mark(name, x, y, r) {
  const { marker, hollow } = data.looks[name];
  const paint = `stroke="${colour(name)}" stroke-width="2" vector-effect="non-scaling-stroke" fill="${hollow ? "var(--panel)" : colour(name)}"`;
  return `<path d="${SHAPES[marker]}" transform="translate(${x} ${y}) scale(${r})" ${paint}/>`;
}
const chip = (name) => `<svg class="chip" viewBox="0 0 14 14" aria-hidden="true">${mark(name, 7, 7, 4.4)}</svg>`;
for (const label of document.querySelectorAll("span.method")) {
  label.insertAdjacentHTML("afterbegin", chip(label.textContent));
}

// Tables ------------------------------------------------------------------------------------------------------------

/** Rows in the order of one column; what has no value stays last either way. */
function sortTable(table, column, direction) {
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = Number(x) - Number(y);
    return direction * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  table.querySelectorAll("thead th").forEach((th, i) => {
    if (i === column) th.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    else th.removeAttribute("aria-sort");
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((th, column) => {
    th.querySelector("button").addEventListener("click", () => {
      sortTable(table, column, th.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  });
}

// A tip beside the pointer or the focused mark ---------------------------------------------------------------------

function showTip(text, x, y) {
  const tip = by("tip");
  tip.textContent = text;
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 16 + height > innerHeight ? y - height - 10 : y + 16}px`;
}
const hideTip = () => { by("tip").hidden = true; };

// Quality against compute -------------------------------------------------------------------------------------------

/** Round values that cover low to high, about n of them. */
function ticks(low, high, n) {
  const raw = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step))) + (String(step).match(/25$/) && step < 1 ? 1 : 0);
  return Array.from({ length: last - first + 1 }, (_, i) => ({ at: (first + i) * step, text: ((first + i) * step).toFixed(digits) }));
}

/** The points that no other beats in both compute and quality, by compute. */
function front(points, moreIsBetter) {
  const quality = (p) => (moreIsBetter ? p.value : -p.value);
  const sorted = [...points].sort((a, b) => a.compute_left - b.compute_left || quality(b) - quality(a));
  let best = -Infinity;
  return sorted.filter((p) => quality(p) > best && ((best = quality(p)), true));
}

function drawQuality(quality) {
  const [width, height, left, right, top, bottom] = [820, 400, 70, 20, 16, 52];
  const points = quality.points;
  const spread = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low < high ? [low, high] : [low - 0.05 * Math.abs(low || 1), high + 0.05 * Math.abs(high || 1)];
  };
  const xs = ticks(...spread(points.map((p) => p.compute_left)), 6);
  const ys = ticks(...spread(points.flatMap((p) => [p.value, p.low ?? p.value, p.high ?? p.value])), 6);
  const scale = (range, from, to) => (value) => from + ((value - range[0].at) / (range.at(-1).at - range[0].at)) * (to - from);
  const [x, y] = [scale(xs, left + 10, width - right - 10), scale(ys, height - bottom - 6, top + 6)];
  const parts = [];
  for (const tick of xs) {
    parts.push(`<line class="grid" x1="${x(tick.at)}" x2="${x(tick.at)}" y1="${top}" y2="${height - bottom}"/>`);
    parts.push(`<text x="${x(tick.at)}" y="${height - bottom + 18}" text-anchor="middle">${tick.text}</text>`);
  }
  for (const tick of ys) {
    parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick.at)}" y2="${y(tick.at)}"/>`);
    parts.push(`<text x="${left - 8}" y="${y(tick.at) + 4}" text-anchor="end">${tick.text}</text>`);
  }
  parts.push(`<path class="axis" d="M${left} ${top}V${height - bottom}H${width - right}"/>`);
  parts.push(`<text x="${(left + width - right) / 2}" y="${height - 10}" text-anchor="middle">compute left (share of vanilla's executed FLOPs)</text>`);
  parts.push(`<text transform="translate(16 ${(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">${quality.title}</text>`);
  parts.push(`<polyline class="front" points="${front(points, quality.more_is_better).map((p) => `${x(p.compute_left)},${y(p.value)}`).join(" ")}"/>`);
  const digits = quality.key === "psnr" ? 2 : 4;
  for (const point of points) {
    const [cx, cy] = [x(point.compute_left), y(point.value)];
    const interval = point.low === null ? [] : [`95 % interval ${point.low.toFixed(digits)} to ${point.high.toFixed(digits)}`];
    const lines = [point.method, `${quality.title}: ${point.value.toFixed(digits)}`, ...interval, `compute left: ${point.compute_left.toFixed(3)}`, `n = ${point.n}`];
    const bar = point.low === null ? "" : `<path stroke="${colour(point.method)}" stroke-width="1.5" fill="none" d="M${cx} ${y(point.low)}V${y(point.high)}M${cx - 5} ${y(point.low)}h10M${cx - 5} ${y(point.high)}h10"/>`;
    parts.push(`<g class="point" tabindex="0" role="img" aria-label="${lines.join("; ")}">${bar}${mark(point.method, cx, cy, 6)}</g>`);
  }
  by("pareto").innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="group" aria-label="${quality.title} against compute left">${parts.join("")}</svg>`;
  by("legend").innerHTML = points.map((p) => `<span>${chip(p.method)}${p.method}</span>`).join("");
  for (const point of by("pareto").querySelectorAll(".point")) {
    const text = point.getAttribute("aria-label").replaceAll("; ", "\n");
    const box = () => point.lastElementChild.getBoundingClientRect();
    for (const event of ["pointerenter", "focus"]) point.addEventListener(event, () => showTip(text, box().right, box().top));
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, hideTip);
  }
}
const qualities = data.plot.qualities;
by("quality").innerHTML = qualities.map((q, i) => `<option value="${i}">${q.title}</option>`).join("");
by("quality").addEventListener("change", (event) => drawQuality(qualities[event.target.value]));
if (qualities.length) drawQuality(qualities[0]);
else by("plot").hidden = true;

// Videos: one slider and one button drive all of them ----------------------------------------------------------------

if (data.clips.length) {
  const CRISP = 256; // videos narrower than this are shown with visible pixels, not blurred up
  const state = { frame: 0, playing: false, videos: new Map() };
  const timeOf = (frame) => (frame + 0.5) / data.fps; // the middle of the frame: no rounding shows its neighbour
  const videos = () => [...state.videos.values()];
  const width = Number(getComputedStyle(document.body).getPropertyValue("--width"));
  document.body.classList.toggle("pixelated", width < CRISP);

  const showFrame = (frame) => {
    state.frame = frame;
    by("frame").value = frame;
    by("clock").value = `frame ${frame + 1} of ${data.frames}, ${(frame / data.fps).toFixed(2)} s`;
  };
  const seek = (frame) => {
    showFrame(frame);
    for (const video of videos()) video.currentTime = timeOf(frame);
  };
  const pause = () => {
    state.playing = false;
    by("play").textContent = "Play";
    for (const video of videos()) video.pause();
    seek(state.frame);
  };
  const follow = () => {
    if (!state.playing) return;
    const [leader, ...others] = videos();
    for (const video of others) {
      const drift = Math.abs(video.currentTime - leader.currentTime);
      if (drift > 1.5 / data.fps && !video.seeking) video.currentTime = leader.currentTime;
    }
    showFrame(Math.min(data.frames - 1, Math.floor(leader.currentTime * data.fps)));
    drawComparison();
    if (leader.ended) {
      seek(0);
      start();
    }
    requestAnimationFrame(follow);
  };
  const start = () => {
    for (const video of videos()) {
      video.playbackRate = Number(by("speed").value);
      video.play().catch(() => {}); // a pause that comes first is no failure
    }
  };
  const play = () => {
    if (!state.videos.size) return;
    if (state.frame >= data.frames - 1) seek(0);
    state.playing = true;
    by("play").textContent = "Pause";
    start();
    requestAnimationFrame(follow);
  };

  function drawComparison() {
    const [vanilla, other] = [state.videos.get("vanilla"), state.videos.get(by("against").value)];
    if (!vanilla || !other || vanilla.readyState < 2 || other.readyState < 2) return;
    const canvas = by("canvas");
    const zoom = Math.max(1, Math.ceil(840 / vanilla.videoWidth));
    const [w, h] = [vanilla.videoWidth * zoom, vanilla.videoHeight * zoom];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = width >= CRISP;
    context.globalCompositeOperation = "copy";
    context.drawImage(other, 0, 0, w, h);
    const view = by("view").value;
    canvas.style.filter = view === "wipe" ? "" : `brightness(${view})`;
    if (view !== "wipe") {
      context.globalCompositeOperation = "difference";
      context.drawImage(vanilla, 0, 0, w, h);
      return;
    }
    const edge = (w * by("wipe").value) / 100;
    context.globalCompositeOperation = "source-over";
    context.save();
    context.beginPath();
    context.rect(0, 0, edge, h);
    context.clip();
    context.drawImage(vanilla, 0, 0, w, h);
    context.restore();
    context.fillStyle = "#000";
    context.fillRect(edge - w / 200, 0, w / 100, h);
    context.fillStyle = "#fff";
    context.fillRect(edge - w / 400, 0, w / 200, h);
  }

  const factsOf = (name, take) => {
    const facts = [];
    if (take.share !== null) facts.push(`${percent(take.share)} of the compute`);
    if (take.psnr === "inf") facts.push("identical to vanilla");
    if (typeof take.psnr === "number") facts.push(`PSNR ${take.psnr.toFixed(2)} dB`);
    if (typeof take.ssim === "number") facts.push(`SSIM ${take.ssim.toFixed(4)}`);
    return [name === "vanilla" ? "the reference" : "", ...facts].filter(Boolean).map((fact) => `<span>${fact}</span>`).join("");
  };

  // Reuse maps: a column a row of the process, a line a chunk ---------------------------------------------------------
  const CLASSES = { c: "computed", r: "reused", h: "held" };
  function mapOf(name, take) {
    if (!take.map) return `<figure><figcaption>${chip(name)}${name}: its trace is missing</figcaption></figure>`;
    const rows = Math.max(...take.map.map((chunk) => chunk.first + chunk.letters.length));
    const [left, right, line, wide] = [60, 4, 13, 1160];
    const step = (wide - left - right) / rows;
    const tall = line * take.map.length;
    const rects = take.map.flatMap((chunk, i) =>
      [...chunk.letters.matchAll(/([crh])\1*/g)].map((run) =>
        `<rect class="${CLASSES[run[1]]}" x="${(left + (chunk.first + run.index) * step).toFixed(2)}" y="${i * line + 1}" width="${(run[0].length * step - 0.6).toFixed(2)}" height="${line - 2}"/>`));
    const labels = take.map.map((_, i) => (i % Math.ceil(take.map.length / 8) ? "" : `<text x="${left - 8}" y="${i * line + 10.5}" text-anchor="end">${i ? i : "chunk 0"}</text>`));
    const marks = ticks(0, rows, 10).filter((tick) => tick.at < rows).map((tick) => `<text x="${left + (tick.at + 0.5) * step}" y="${tall + 15}" text-anchor="middle">${tick.at ? tick.text : "row 0"}</text>`);
    const title = `${name}: ${percent(take.computed)} of the chunk steps computed`;
    return `<figure data-method="${name}"><figcaption>${chip(name)}${title}</figcaption><svg viewBox="0 0 ${wide} ${tall + 20}" role="img" aria-label="${title}" data-step="${step}" data-left="${left}" data-line="${line}"><rect class="back" x="${left - 1}" y="0" width="${wide - left - right + 1}" height="${tall}"/>${rects.join("")}${labels.join("")}${marks.join("")}</svg></figure>`;
  }
  by("reuse").addEventListener("pointermove", (event) => {
    const svg = event.target.closest("svg[data-step]");
    if (!svg) return hideTip();
    const box = svg.getBoundingClientRect();
    const unit = svg.viewBox.baseVal.width / box.width;
    const row = Math.floor(((event.clientX - box.left) * unit - svg.dataset.left) / svg.dataset.step);
    const index = Math.floor(((event.clientY - box.top) * unit) / svg.dataset.line);
    const chunk = clip().takes[svg.parentElement.dataset.method].map[index];
    const action = chunk && CLASSES[chunk.letters[row - chunk.first]];
    if (action) showTip(`row ${row}, chunk ${index}: ${action}`, event.clientX, event.clientY);
    else hideTip();
  });
  by("reuse").addEventListener("pointerleave", hideTip);

  const clip = () => data.clips[by("clip").value];
  function showClip() {
    if (state.playing) pause();
    const names = data.methods.filter((name) => clip().takes[name]);
    state.videos.clear();
    by("takes").replaceChildren(...names.map((name) => {
      const take = clip().takes[name];
      const figure = document.createElement("figure");
      figure.innerHTML = `<figcaption>${chip(name)}${name}</figcaption><p class="note">${factsOf(name, take)}</p>`;
      const video = document.createElement(take.video ? "video" : "div");
      if (take.video) {
        Object.assign(video, { src: take.video, muted: true, playsInline: true, preload: "auto" });
        video.setAttribute("aria-label", `${name}: ${clip().prompt}`);
        for (const event of ["seeked", "loadeddata"]) video.addEventListener(event, drawComparison);
        state.videos.set(name, video);
      } else {
        Object.assign(video, { className: "missing", textContent: "no preview file" });
      }
      figure.querySelector("figcaption").after(video);
      return figure;
    }));
    const others = names.filter((name) => name !== "vanilla" && state.videos.has(name));
    const before = by("against").value;
    by("against").innerHTML = others.map((name) => `<option${name === before ? " selected" : ""}>${name}</option>`).join("");
    if (!others.includes(before)) by("against").selectedIndex = others.length - 1;
    document.querySelector(".compare").hidden = !others.length || !state.videos.has("vanilla");
    by("map-prompt").textContent = `Of the prompt chosen above, “${clip().prompt}”, seed ${clip().seed}, from its trace. A row is one step of the whole process, which advances every chunk that is active.`;
    by("held-key").hidden = !names.some((name) => clip().takes[name].map?.some((chunk) => chunk.letters.includes("h")));
    by("reuse").innerHTML = names.map((name) => mapOf(name, clip().takes[name])).join("");
    describeComparison();
    seek(state.frame);
  }
  function describeComparison() {
    const wipe = by("view").value === "wipe";
    by("wipe-label").hidden = !wipe;
    by("compare-note").textContent = wipe
      ? `Left of the line vanilla, right of it ${by("against").value}. Drag in the picture, or use the slider.`
      : `Black where ${by("against").value} shows what vanilla shows.`;
    drawComparison();
  }

  data.clips.forEach((each, i) => by("clip").add(new Option(`${each.prompt} (seed ${each.seed})`, i)));
  by("clip").addEventListener("change", showClip);
  by("play").addEventListener("click", () => (state.playing ? pause() : play()));
  by("frame").addEventListener("input", (event) => {
    const frame = Number(event.target.value);
    if (state.playing) pause();
    seek(frame);
  });
  by("speed").addEventListener("change", () => videos().forEach((video) => (video.playbackRate = Number(by("speed").value))));
  by("wipe").addEventListener("input", drawComparison);
  for (const id of ["against", "view"]) by(id).addEventListener("change", describeComparison);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = by("canvas").getBoundingClientRect();
    by("wipe").value = ((event.clientX - box.left) / box.width) * 100;
    drawComparison();
  };
  for (const event of ["pointerdown", "pointermove"]) by("canvas").addEventListener(event, drag);
  showClip();
}
