// A deployment's use of its quota over the last minutes, as a small SVG.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 80;

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** Draws samples of { at, used, tpm } into an svg element; the description is for screen readers. */
export function draw(svg, samples, description) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", description);
  const highest = Math.max(1, ...samples.map((s) => Math.max(s.used, s.tpm ?? 0))) * 1.08;
  const last = samples.at(-1)?.at ?? 0;
  const span = 15 * 60_000;
  const x = (at) => (WIDTH * (1 - (last - at) / span)).toFixed(1);
  const y = (tokens) => (HEIGHT * (1 - tokens / highest)).toFixed(1);
  const line = samples.map((s) => `${x(s.at)},${y(s.used)}`).join(" ");
  const parts = [];
  if (samples.length > 1) {
    const area = `${x(samples[0].at)},${HEIGHT} ${line} ${WIDTH},${HEIGHT}`;
    parts.push(shape("polygon", { class: "area", points: area }));
    parts.push(shape("polyline", { class: "used", points: line }));
  }
  const quota = samples.at(-1)?.tpm;
  if (quota) parts.push(shape("line", { class: "quota", x1: 0, x2: WIDTH, y1: y(quota), y2: y(quota) }));
  svg.replaceChildren(...parts);
}
