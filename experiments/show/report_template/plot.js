// Quality against compute -------------------------------------------------------------------------------------------

/** The points that no other beats in both compute and quality, by compute. */
function front(points, moreIsBetter) {
  const quality = (p) => (moreIsBetter ? p.value : -p.value);
  const sorted = [...points].sort((a, b) => a.compute_left - b.compute_left || quality(b) - quality(a));
  let best = -Infinity;
  return sorted.filter((p) => quality(p) > best && ((best = quality(p)), true));
}

/** Lowest and highest of some values; a little more than the value where they are one. */
function spread(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low < high ? [low, high] : [low - 0.05 * Math.abs(low || 1), high + 0.05 * Math.abs(high || 1)];
}

function drawQuality(quality, width) {
  const height = Math.round(Math.min(400, Math.max(260, 0.6 * width)));
  const [left, right, top, bottom] = [62, 14, 12, 50];
  const points = quality.points;
  const xs = ticks(...spread(points.map((p) => p.compute_left)), Math.min(6, width / 90));
  const ys = ticks(...spread(points.flatMap((p) => [p.value, p.low ?? p.value, p.high ?? p.value])), 6);
  const scale = (range, from, to) => (value) =>
    from + ((value - range[0].at) / (range.at(-1).at - range[0].at)) * (to - from);
  const x = scale(xs, left + 10, width - right - 10);
  const y = scale(ys, height - bottom - 6, top + 6);
  const parts = [];
  for (const tick of xs) {
    parts.push(`<line class="grid" x1="${x(tick.at)}" x2="${x(tick.at)}" y1="${top}" y2="${height - bottom}"/>`);
    parts.push(`<text x="${x(tick.at)}" y="${height - bottom + 18}" text-anchor="middle">${tick.text}</text>`);
  }
  for (const tick of ys) {
    parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick.at)}" y2="${y(tick.at)}"/>`);
    parts.push(`<text x="${left - 8}" y="${y(tick.at) + 4}" text-anchor="end">${tick.text}</text>`);
  }
  const middle = `translate(14 ${(top + height - bottom) / 2}) rotate(-90)`;
  const along = front(points, quality.more_is_better).map((p) => `${x(p.compute_left)},${y(p.value)}`);
  parts.push(
    `<path class="axis" d="M${left} ${top}V${height - bottom}H${width - right}"/>`,
    `<text x="${(left + width - right) / 2}" y="${height - 10}" text-anchor="middle">compute left, share of ${data.baseline}'s FLOPs</text>`,
    `<text transform="${middle}" text-anchor="middle">${quality.title}</text>`,
    `<polyline class="front" points="${along.join(" ")}"/>`,
    ...points.map((point) => pointOf(point, quality, x, y)),
  );
  const label = `${quality.title} against compute left`;
  by("pareto").innerHTML =
    `<svg width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="group" aria-label="${label}">${parts.join("")}</svg>`;
  by("legend").innerHTML = points.map((p) => `<span>${chip(p.method)}${p.method}</span>`).join("");
  for (const point of by("pareto").querySelectorAll(".point")) {
    const text = point.getAttribute("aria-label").replaceAll("; ", "\n");
    const box = () => point.lastElementChild.getBoundingClientRect();
    for (const event of ["pointerenter", "focus"]) {
      point.addEventListener(event, () => showTip(text, box().right, box().top));
    }
    for (const event of ["pointerleave", "blur"]) point.addEventListener(event, hideTip);
  }
}

/** A method's mark with its interval, and its numbers as a label. */
function pointOf(point, quality, x, y) {
  const digits = quality.key === "psnr" ? 2 : 4;
  const [cx, cy] = [x(point.compute_left), y(point.value)];
  const lines = [point.method, `${quality.title}: ${point.value.toFixed(digits)}`];
  let bar = "";
  if (point.low !== null) {
    lines.push(`95 % interval ${point.low.toFixed(digits)} to ${point.high.toFixed(digits)}`);
    const [low, high] = [y(point.low), y(point.high)];
    const path = `M${cx} ${low}V${high}M${cx - 5} ${low}h10M${cx - 5} ${high}h10`;
    bar = `<path stroke="${colour(point.method)}" stroke-width="1.5" fill="none" d="${path}"/>`;
  }
  lines.push(`compute left: ${point.compute_left.toFixed(3)}`, `n = ${point.n}`);
  const label = lines.join("; ");
  return `<g class="point" tabindex="0" role="img" aria-label="${label}">${bar}${mark(point.method, cx, cy, 6)}</g>`;
}

const qualities = data.plot.qualities;
by("quality").innerHTML = qualities.map((q, i) => `<option value="${i}">${q.title}</option>`).join("");
if (qualities.length) {
  const redraw = drawToFit(by("pareto"), (width) => drawQuality(qualities[by("quality").value], width));
  by("quality").addEventListener("change", redraw);
} else by("plot").hidden = true;
