// The files of the message that is being written: chosen, dropped or pasted, removed in place, and given to the question
// that is sent.
// Without this script the same buttons post the form, and the page comes back with what was typed.

import { stayingIn } from "./focus.js";
import { chosenModel } from "./options.js";
import { announce, sentence } from "./turns.js";

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const form = part("form");
const list = part("files");
const chooser = form.elements.file;
const { csrfmiddlewaretoken: csrf } = form.elements;
const SOON = 1000; // most files are there before
let adding = 0;
let saying = 0;
let leaving = null; // the AbortController of the files that are on their way

part("add-file").toggleAttribute("data-scripted", true); // hides the button: choosing adds
chooser.multiple = true;
chooser.addEventListener("change", () => {
  const chosen = [...chooser.files];
  chooser.value = "";
  part("options").matches(":popover-open") && part("options").hidePopover();
  addAll(chosen);
});
// Wherever it is dropped: beside the box, the browser would open the file in the place of the page.
// A picture that is dragged out of a page is a file, too, and has an address.
const isOfFiles = ({ dataTransfer: data }) => data?.types.includes("Files") && !data.types.includes("text/uri-list");
addEventListener("dragover", (event) => isOfFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!isOfFiles(event)) return;
  event.preventDefault();
  addAll([...event.dataTransfer.files]);
});
form.elements.prompt.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  // A table is copied as words, how they look, and its picture; a file on macOS with its name as words.
  const looks = types.includes("text/html") || types.includes("text/rtf");
  if (!files.length || (looks && types.includes("text/plain"))) return;
  event.preventDefault();
  addAll([...files]);
});
part("leave-out").addEventListener("click", () => {
  leaving.abort();
  form.elements.prompt.focus();
});
list.addEventListener("click", (event) => {
  const button = event.target.closest("[data-remove]");
  if (!button) return;
  event.preventDefault();
  remove(button);
});

async function addAll(files) {
  refuse("");
  for (const file of files) await add(file);
}

async function add(file) {
  const most = Number(chooser.dataset.most);
  if (file.size > most) return refuseOne(file, sentence("file_large", most / 1024 / 1024));
  const body = new FormData();
  body.append("file", file);
  body.append("model", chosenModel(form) ?? ""); // not every model takes pictures
  body.append("conversation_id", form.elements.conversation_id.value);
  count(+1);
  announce(sentence("adding"));
  const { signal } = leaving;
  try {
    const { html } = await post("/c/files/", body, signal);
    list.insertAdjacentHTML("beforeend", html);
    changed();
    announce(sentence("added"));
  } catch (failure) {
    if (!signal.aborted) refuseOne(file, failure.message);
  } finally {
    count(-1);
  }
}

function count(more) {
  if (!adding) leaving = new AbortController();
  adding += more;
  form.toggleAttribute("data-adding", adding > 0);
  clearTimeout(saying);
  if (adding) saying = setTimeout(() => (part("adding").hidden = false), SOON);
  else part("adding").hidden = true;
}

async function remove(button) {
  try {
    await post(button.formAction);
  } catch (failure) {
    if (failure.status !== 404) return refuse(failure.message); // it is gone
  }
  button.closest("[data-file]").remove();
  changed();
  refuse("");
  announce(sentence("removed"));
  form.elements.prompt.focus();
}

// The price of the message is another now.
function changed() {
  list.dispatchEvent(new Event("change", { bubbles: true }));
}

async function post(address, body, signal) {
  const headers = { Accept: "application/json", "X-CSRFToken": csrf.value };
  const response = await fetch(address, { method: "POST", headers, body, signal }).catch(() => null);
  const answer = await response?.json().catch(() => null); // a page says that one is signed out, or it is too large
  if (response?.ok && answer) return answer;
  throw { status: response?.status, message: answer?.message ?? sentence("not_added") };
}

function refuse(message) {
  part("file-refusal").textContent = message;
  part("file-refusal").hidden = !message;
}

// Beside those of the same choice before it, of which none is to be missed for the last one.
function refuseOne(file, message) {
  refuse([part("file-refusal").textContent, `${file.name}: ${message}`].filter(Boolean).join("\n"));
}

// --- for chat.js ---

// Whether a file is on its way: a message that is sent now would go without it.
export function isAdding() {
  if (adding) announce(sentence("adding"));
  if (adding) part("adding").hidden = false;
  return adding > 0;
}

// What is sent with a message, and nothing where there are no files.
export function filesField() {
  const files = [...list.children].map((file) => Number(file.dataset.file));
  return files.length ? { files } : {};
}

// The files go under the question; their numbers.
export function giveFiles(turn) {
  const field = filesField();
  turn.querySelector("[data-files]").append(...list.children);
  return field;
}

export function takeFilesBack(turn) {
  list.prepend(...turn.querySelectorAll("[data-file]"));
}

// What is not sent, as a page of the server's has it.
export function showFiles(page) {
  const files = page.querySelectorAll('[data-chat="files"] > li');
  stayingIn('[data-chat="files"]', () => list.replaceChildren(...files));
  changed();
}
