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
  "<": "M-1.2 0L.9 -1.15V1.15Z",
  ">": "M1.2 0L-.9 -1.15V1.15Z",
  p: "M0 -1.15L1.1 -.35L.68 .95H-.68L-1.1 -.35Z",
  d: "M0 -1.3L.8 0L0 1.3L-.8 0Z",
  D: "M0 -1.3L1.3 0L0 1.3L-1.3 0Z",
  P: "M-.45 -1.2H.45V-.45H1.2V.45H.45V1.2H-.45V.45H-1.2V-.45H-.45Z",
  X: "M-1.1 -.5L-.5 -1.1L0 -.6L.5 -1.1L1.1 -.5L.6 0L1.1 .5L.5 1.1L0 .6L-.5 1.1L-1.1 .5L-.6 0Z",
};

/** The method's mark as SVG elements, of radius r about (x, y). */
function mark(name, x, y, r) {
  const { marker, hollow } = data.looks[name];
  const fill = hollow ? "var(--panel)" : colour(name);
  const paint = `stroke="${colour(name)}" stroke-width="2" vector-effect="non-scaling-stroke" fill="${fill}"`;
  return `<path d="${SHAPES[marker]}" transform="translate(${x} ${y}) scale(${r})" ${paint}/>`;
}
const chip = (name) => `<svg class="chip" viewBox="0 0 14 14" aria-hidden="true">${mark(name, 7, 7, 4.4)}</svg>`;
for (const label of document.querySelectorAll("span.method")) {
  const name = label.textContent;
  if (Object.hasOwn(data.looks, name)) label.insertAdjacentHTML("afterbegin", chip(name)); // not of a paper's alone
}

// Drawings are as wide as the page lets them be, so that none is cut off -----------------------------------------------

/** Call draw(width in pixels) now, whenever the element's width changes, and whenever what is returned is called. */
function drawToFit(element, draw) {
  let drawn = 0;
  const fit = () => {
    const style = getComputedStyle(element);
    const width = Math.floor(element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (width > 0 && width !== drawn) draw((drawn = width));
  };
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(element);
  fit();
  return () => {
    drawn = 0;
    fit();
  };
}

/** Round values that cover low to high, about n of them. */
function ticks(low, high, n) {
  const raw = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(raw));
  const multiple = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
  const step = power * multiple;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const digits = Math.max(0, ({ 2.5: 1, 10: -1 }[multiple] ?? 0) - Math.round(Math.log10(power)));
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const at = (first + i) * step;
    return { at, text: at.toFixed(digits) };
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
