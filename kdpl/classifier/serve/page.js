// Classifies a picture in the browser.
import * as ort from "./ort.wasm.min.mjs";
import {ranked} from "./parts.js";
import {prepared} from "./resize.js";

const $ = id => document.getElementById(id);
const TOP = 5;
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
ort.env.wasm.numThreads = 1; // several need headers that a plain file server does not send
let facts, session;

// What the model takes of a picture file: turned as its EXIF says, on white where it is transparent, its colours as they are.
async function pixels(file) {
  const bitmap = await createImageBitmap(file, {imageOrientation: "from-image", colorSpaceConversion: "none"});
  const longest = facts.longest * Math.min(bitmap.width, bitmap.height);
  const width = Math.min(bitmap.width, longest), height = Math.min(bitmap.height, longest); // of a longer one the middle
  const context = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true, alpha: false});
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, -Math.floor((bitmap.width - width) / 2), -Math.floor((bitmap.height - height) / 2));
  const {data} = context.getImageData(0, 0, width, height);
  return new ort.Tensor("float32", prepared(data, width, height, facts), [1, 3, facts.side, facts.side]);
}

async function classify(file) {
  $("state").textContent = "...";
  $("names").replaceChildren();
  try {
    const answer = await session.run({pixels: await pixels(file)});
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
window.ready.catch(error => { $("state").textContent = `The model cannot be loaded: ${error.message}. It must come from a server: python -m http.server --bind 127.0.0.1 --directory FOLDER.`; });
