// Reuse maps: a column a row of the process, a line a chunk ---------------------------------------------------------

const CLASSES = { c: "computed", r: "reused", f: "forecast", h: "held" };

function mapOf(name, take, width) {
  if (!take.map) return `<figure><figcaption>${chip(name)}${name}: its trace is missing</figcaption></figure>`;
  const rows = Math.max(...take.map.map((chunk) => chunk.first + chunk.letters.length));
  const [left, right, line] = [62, 4, 13];
  const step = (width - left - right) / rows;
  const tall = line * take.map.length;
  const gap = Math.min(0.6, step / 4);
  const rects = take.map.flatMap((chunk, i) =>
    [...chunk.letters.matchAll(/([crfh])\1*/g)].map((run) => {
      const at = (left + (chunk.first + run.index) * step).toFixed(2);
      const long = (run[0].length * step - gap).toFixed(2);
      return `<rect class="${CLASSES[run[1]]}" x="${at}" y="${i * line + 1}" width="${long}" height="${line - 2}"/>`;
    }));
  const every = Math.ceil(take.map.length / 8);
  const labels = take.map.map((_, i) =>
    i % every ? "" : `<text x="${left - 8}" y="${i * line + 10.5}" text-anchor="end">${i ? i : "chunk 0"}</text>`);
  const marks = ticks(0, rows, Math.min(10, width / 60)).filter((tick) => tick.at < rows).map((tick) => {
    const at = left + (tick.at + 0.5) * step;
    return `<text x="${at}" y="${tall + 15}" text-anchor="middle">${tick.at ? tick.text : "row 0"}</text>`;
  });
  const title = `${name}: ${percent(take.computed)} of the chunk steps computed`;
  const size = `width="${width}" height="${tall + 20}" viewBox="0 0 ${width} ${tall + 20}"`;
  const scale = `data-step="${step}" data-left="${left}" data-line="${line}"`;
  const back = `<rect class="back" x="${left - 1}" y="0" width="${width - left - right + 1}" height="${tall}"/>`;
  const drawn = [back, ...rects, ...labels, ...marks].join("");
  return `<figure data-method="${name}"><figcaption>${chip(name)}${title}</figcaption>
    <svg ${size} role="img" aria-label="${title}" ${scale}>${drawn}</svg></figure>`;
}

/** Say of the place under the pointer what was done there; takesOf() are those whose maps are shown. */
function tellMaps(takesOf) {
  by("reuse").addEventListener("pointermove", (event) => {
    const svg = event.target.closest("svg[data-step]");
    if (!svg) return hideTip();
    const box = svg.getBoundingClientRect();
    const unit = svg.viewBox.baseVal.width / box.width;
    const row = Math.floor(((event.clientX - box.left) * unit - svg.dataset.left) / svg.dataset.step);
    const index = Math.floor(((event.clientY - box.top) * unit) / svg.dataset.line);
    const chunk = takesOf()[svg.parentElement.dataset.method].map[index];
    const action = chunk && CLASSES[chunk.letters[row - chunk.first]];
    if (action) showTip(`row ${row}, chunk ${index}: ${action}`, event.clientX, event.clientY);
    else hideTip();
  });
  by("reuse").addEventListener("pointerleave", hideTip);
}
