// A curve a method, of quality over the compute left ------------------------------------------------------------------

const svg = (name, attributes, parent) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent?.append(element);
  return element;
};
const write = (parent, text, attributes) => { svg("text", attributes, parent).textContent = text; };

/** A mark as mark() of page.js draws it, of a look that is given. */
function drawMark(parent, look, x, y, r) {
  const fill = look.hollow ? "var(--panel)" : look.colour;
  const paint = { stroke: look.colour, "stroke-width": 1.5, "vector-effect": "non-scaling-stroke", fill };
  return svg("path", { d: SHAPES[look.marker], transform: `translate(${x} ${y}) scale(${r})`, ...paint }, parent);
}

const figuresOf = (line, point, curve) => {
  const lines = [line.method + (point.told && point.told !== line.method ? `, ${point.told}` : "")];
  lines.push(`${curve.short}: ${point.value.toFixed(2)} dB`);
  if (point.interval) lines.push(`95 % interval ${point.interval[0].toFixed(2)} to ${point.interval[1].toFixed(2)}`);
  lines.push(`compute left: ${point.compute_left.toFixed(3)}`, `n = ${point.n}`);
  return lines.join("\n");
};

function drawAxes(drawing, curve, [xs, ys], [x, y], [width, height], [left, right, top, bottom]) {
  for (const tick of xs) {
    svg("line", { class: "grid", x1: x(tick.at), x2: x(tick.at), y1: top, y2: height - bottom }, drawing);
    write(drawing, tick.text, { x: x(tick.at), y: height - bottom + 18, "text-anchor": "middle" });
  }
  for (const tick of ys) {
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick.at), y2: y(tick.at) }, drawing);
    write(drawing, tick.text, { x: left - 8, y: y(tick.at) + 4, "text-anchor": "end" });
  }
  svg("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }, drawing);
  write(drawing, `compute left, share of ${curve.baseline}'s FLOPs`, { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" });
  write(drawing, curve.title, { x: 4, y: 14 });
}

function drawCurve(drawing, line, curve, x, y) {
  const group = svg("g", { class: "line", tabindex: 0, role: "group", "aria-label": `${line.method}, ${line.points.length} points` }, drawing);
  const along = line.points.map((p) => `${x(p.compute_left)},${y(p.value)}`).join(" ");
  svg("polyline", { points: along, fill: "none", stroke: line.look.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash }, group);
  const marks = line.points.map((point) => {
    const [cx, cy] = [x(point.compute_left), y(point.value)];
    const spot = svg("g", { class: "point", role: "img", "aria-label": figuresOf(line, point, curve) }, group);
    if (point.interval) {
      const [low, high] = point.interval.map(y);
      svg("path", { class: "bar", stroke: line.look.colour, d: `M${cx} ${low}V${high}M${cx - 3} ${low}h6M${cx - 3} ${high}h6` }, spot);
    }
    drawMark(spot, line.look, cx, cy, 4.2);
    const target = svg("circle", { cx, cy, r: 11, fill: "transparent" }, spot);
    const tell = () => {
      const box = target.getBoundingClientRect();
      showTip(figuresOf(line, point, curve), box.right - 6, box.top);
    };
    for (const event of ["pointerenter", "click"]) spot.addEventListener(event, tell);
    spot.addEventListener("pointerleave", hideTip);
    return tell;
  });
  let at = -1;
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.max(0, Math.min(marks.length - 1, at + step));
    marks[at]();
  });
  group.addEventListener("blur", hideTip);
  return group;
}

function drawCurves(box, curve, width) {
  const height = Math.round(Math.min(480, Math.max(320, 0.55 * width)));
  const edges = [44, 12, 28, 46];
  const [left, right, top, bottom] = edges;
  const points = curve.lines.flatMap((line) => line.points);
  const reach = (values) => (Math.min(...values) < Math.max(...values) ? [Math.min(...values), Math.max(...values)] : [values[0] - 1, values[0] + 1]);
  const ranges = [
    ticks(...reach(points.map((p) => p.compute_left)), Math.min(8, width / 80)),
    ticks(...reach(points.flatMap((p) => [p.value, ...(p.interval ?? [])])), 6),
  ];
  const scale = (range, from, to) => (value) => from + ((value - range[0].at) / (range.at(-1).at - range[0].at)) * (to - from);
  const [x, y] = [scale(ranges[0], left + 8, width - right - 8), scale(ranges[1], height - bottom - 4, top + 4)];
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${curve.title} over the compute left` });
  drawAxes(drawing, curve, ranges, [x, y], [width, height], edges);
  const lines = curve.lines.map((line) => drawCurve(drawing, line, curve, x, y));
  box.replaceChildren(drawing);
  return lines;
}

/** A key to the curves; a press brings one's curve forward. */
function drawLegend(legend, curve, groups) {
  legend.replaceChildren(
    ...curve.lines.map((line, i) => {
      const [button, name] = [document.createElement("button"), document.createElement("span")];
      const sample = svg("svg", { class: "chip", viewBox: "0 0 28 14", "aria-hidden": "true" }, button);
      svg("path", { d: "M0 7H28", stroke: line.look.colour, "stroke-width": 1.8, "stroke-dasharray": line.dash }, sample);
      drawMark(sample, line.look, 14, 7, 4.2);
      name.textContent = line.method;
      button.append(name);
      button.type = "button";
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
        const pressed = [...legend.children].map((each) => each.getAttribute("aria-pressed") === "true");
        groups.forEach((group, j) => group.classList.toggle("dim", pressed.includes(true) && !pressed[j]));
        if (pressed[i]) groups[i].parentNode.append(groups[i]);
      });
      return button;
    }),
  );
}

for (const article of document.querySelectorAll("article[data-family]")) {
  const { curves } = data.families[article.dataset.family];
  if (!curves.length) continue;
  const [figure, choice] = [article.querySelector("figure.curves"), article.querySelector("select.curve")];
  figure.hidden = choice.closest(".controls").hidden = false;
  curves.forEach((curve, i) => choice.add(new Option(curve.name, i)));
  const box = figure.querySelector(".plot");
  const redraw = drawToFit(box, (width) => {
    const curve = curves[choice.value];
    drawLegend(figure.querySelector(".legend"), curve, drawCurves(box, curve, width));
  });
  choice.addEventListener("change", redraw);
}
document.addEventListener("pointerdown", hideTip);
addEventListener("scroll", hideTip, { passive: true });
