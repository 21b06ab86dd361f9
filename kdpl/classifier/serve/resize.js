// A picture as the model's input, every pixel as Pillow's resizing has it: its weights in whole numbers, its rounding, its order.

const ONE = 2 ** 22; // stands for 1 in a weight
const FILTERS = { // how far each reaches, and its weight at a distance
  bicubic: [2, x => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -.5 : 0],
  bilinear: [1, x => Math.max(1 - x, 0)],
};
const half = n => n % 4 === 3 ? (n + 1) / 2 : n >> 1; // as Python rounds n / 2

// Of `side` pixels of an edge, from `offset` on, that is resized to `to` pixels: the first pixel that counts, and the weights.
function weights(size, to, offset, side, [reach, filter]) {
  const scale = size / to, wide = Math.max(scale, 1), support = reach * wide;
  return Array.from({length: side}, (_, i) => {
    const centre = (offset + i + .5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + .5)), end = Math.min(size, Math.trunc(centre + support + .5));
    const values = Array.from({length: end - first}, (_, k) => filter(Math.abs((k + first - centre + .5) * (1 / wide))));
    const sum = values.reduce((a, b) => a + b, 0);
    return [first, values.map(value => Math.trunc(value / sum * ONE + (value < 0 ? -.5 : .5)))];
  });
}

function resizeEdge({data, width, height, channels}, edge, upright) {
  const wide = upright ? width : edge.length, high = upright ? edge.length : height;
  const out = new Uint8ClampedArray(wide * high * 3), step = channels * (upright ? width : 1);
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const [first, values] = edge[upright ? y : x], start = channels * (upright ? first * width + x : y * width + first);
      for (let c = 0; c < 3; c++) {
        let total = ONE / 2;
        for (let k = 0, at = start + c; k < values.length; k++, at += step) total += data[at] * values[k];
        out[3 * (y * wide + x) + c] = Math.floor(total / ONE);
      }
    }
  }
  return {data: out, width: wide, height: high, channels: 3};
}

export function prepared(data, width, height, {side, interpolation, squash, pillow}) { // RGBA to (3, side, side) in 0..1
  const edges = [width, height], to = edges.map(edge => squash ? side : Math.floor(side * edge / Math.min(width, height)));
  const [columns, rows] = edges.map((edge, i) => weights(edge, to[i], half(to[i] - side), side, FILTERS[interpolation]));
  const high = pillow >= 13 && height - to[1] > Math.max(0, 2 * (width - to[0])); // which edge comes first
  let picture = {data, width, height, channels: 4};
  for (const upright of [high, !high]) picture = resizeEdge(picture, upright ? rows : columns, upright);
  return Float32Array.from({length: 3 * side * side}, (_, i) => picture.data[3 * (i % (side * side)) + Math.floor(i / (side * side))] / 255);
}
