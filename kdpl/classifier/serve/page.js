// Classifies a picture in the browser. The model holds resizing and normalisation: it is given upright RGB of any size.
import * as ort from "./ort.wasm.min.mjs";
import {ranked} from "./parts.js";

const $ = id => document.getElementById(id);
const TOP = 5;
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several need headers that a plain file server does not send
let facts, session;

// Pixels (H, W, 3) of a picture file: turned as its EXIF says, on white where it is transparent, its colours as they are.
async function pixels(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none"});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true, alpha: false});
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const rgb = new Uint8Array(bitmap.width * bitmap.height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [bitmap.height, bitmap.width, 3]);
}

async function classify(file) {
  $("state").textContent = "...";
  $("names").replaceChildren();
  try {
    const answer = await session.run({image: await pixels(file)});
    const probabilities = [...answer.probabilities.data];
    if (!probabilities.every(Number.isFinite)) throw new Error("the model's answer is not a number");
    const rejected = Boolean(answer.rejected?.data[0]);
    const order = probabilities.map((p, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
    $("names").replaceChildren(...ranked(order.slice(0, TOP).map(i => [facts.names[i], probabilities[i]])));
    $("picture").src = URL.createObjectURL(file);
    $("picture").hidden = false;
    $("state").textContent = rejected ? facts.rejected : facts.names[order[0]];
    return {probabilities, rejected};
  } catch (error) {
    $("state").textContent = `This picture cannot be read: ${error.message}`;
    throw error;
  }
}

async function start() {
  facts = await (await fetch("names.json")).json();
  session = await ort.InferenceSession.create("model.onnx");
  $("state").textContent = `${facts.names.length} names`;
  $("file").onchange = () => $("file").files[0] && classify($("file").files[0]).catch(() => {});
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) classify(event.dataTransfer.files[0]).catch(() => {});
  };
}

window.classify = classify;
window.ready = start();
window.ready.catch(error => { $("state").textContent = `The model cannot be loaded: ${error.message}. Start serve.py and open its address.`; });
