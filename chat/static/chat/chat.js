// Streams an answer into the page. Without this script the same form posts and the page comes back.

const part = (name) => document.querySelector(`[data-chat="${name}"]`);
const form = part("form");
const { prompt, conversation_id: conversation, max_tokens: cap, csrfmiddlewaretoken: csrf } = form.elements;
let running = null; // the AbortController of the answer under way

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && prompt.value.trim()) ask(prompt.value);
});
prompt.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method's Enter picks a word
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  form.requestSubmit();
});
part("stop").addEventListener("click", () => running?.abort());
if (part("turns").children.length > 1) scrollTo(0, document.body.scrollHeight);

async function ask(question) {
  const turns = [addTurn("user", question), addTurn("assistant", "")];
  const text = turns[1].querySelector(".turn__text");
  turns[1].setAttribute("aria-busy", "true");
  setRunning(new AbortController());
  refuse(null);
  prompt.value = "";
  let [facts, id] = [null, null];
  try {
    const response = await post(question, running.signal);
    id = response.headers.get("X-Conversation-ID");
    for await (const { name, data } of events(response.body)) {
      if (name === "token") append(text, data.text);
      if (name === "done") facts = data;
      if (name === "error") throw data;
    }
    if (!facts) throw { message: "The connection ended before the answer did." };
  } catch (reason) {
    if (!facts && !running.signal.aborted) refuse(reason);
  }
  const stopped = running.signal.aborted;
  setRunning(null);
  turns[1].removeAttribute("aria-busy");
  if (id) keepPlace(id, question);
  if (facts) settle(turns[1], facts);
  else if (text.textContent || stopped) breakOff(turns[1], stopped);
  else for (const turn of turns) turn.remove();
  if (!facts && !text.textContent) prompt.value = [question, prompt.value].filter(Boolean).join("\n");
  part("announce").textContent = stopped && !facts ? "Stopped." : text.textContent;
  prompt.focus();
}

async function post(question, signal) {
  const body = { prompt: question, stream: true, max_tokens: Number(cap?.value) || undefined };
  if (conversation.value) body.conversation_id = Number(conversation.value);
  const headers = { "Content-Type": "application/json", "X-CSRFToken": csrf.value };
  const response = await fetch("/api/chat/", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (response.ok) return response;
  const message = `The server answered ${response.status}. Try again.`;
  throw { message, ...(await response.json().catch(() => null)), status: response.status };
}

// Server-sent events as they arrive. A chunk may end anywhere: inside a character, or between CR and LF.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, name, data] = ["", "message", []];
  for (let chunk; !(chunk = await reader.read()).done; ) {
    const lines = (rest + chunk.value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s); // a comment has no field name
      if (field === "event") name = value;
      if (field === "data") data.push(value);
      if (line === "" && data.length) yield { name, data: JSON.parse(data.join("\n")) };
      if (line === "") [name, data] = ["message", []];
    }
  }
}

function settle(turn, { cost, usage, budget }) {
  const left = budget ? ` · ${short(budget.remaining)} left` : "";
  const tokens = `${usage.input_tokens} in / ${usage.output_tokens} out`;
  turn.querySelector(".turn__facts").textContent = `$${cost.usd} · ${tokens}${left}`;
  showBudget(budget);
}

// From the header and not from the last event, which a reader who stops the answer never sees.
function keepPlace(id, question) {
  if (!conversation.value) addConversation(id, question);
  conversation.value = id;
  history.replaceState(null, "", `/c/${id}/`);
}

async function breakOff(turn, stopped) {
  turn.querySelector(".turn__facts").textContent = `${stopped ? "Stopped" : "Broke off"} · what was used is booked`;
  const { balances = [] } = await fetch("/api/budget/").then((answer) => answer.json()).catch(() => ({}));
  showBudget(balances.find(({ scope_path: path }) => !path.includes("/")));
}

function refuse(failure) {
  part("refusal").hidden = !failure;
  part("refusal-link").hidden = failure?.status !== 402;
  const lost = failure instanceof Error && "The connection failed. Check the network and send the message again.";
  part("refusal-words").textContent = lost || (failure?.message ?? "");
  showBudget(failure?.budget);
}

function addTurn(role, text) {
  const turn = part(`${role}-turn`).content.firstElementChild.cloneNode(true);
  turn.querySelector(".turn__text").textContent = text;
  part("turns").append(turn);
  scrollTo(0, document.body.scrollHeight);
  return turn;
}

function append(element, text) {
  const atEnd = innerHeight + scrollY > document.body.scrollHeight - 60; // a reader who scrolled up is left there
  element.append(text);
  if (atEnd) scrollTo(0, document.body.scrollHeight);
}

function addConversation(id, title) {
  const item = document.createElement("li");
  const link = { href: `/c/${id}/`, textContent: title, dir: "auto", ariaCurrent: "page" };
  item.append(Object.assign(document.createElement("a"), link));
  part("conversations").prepend(item);
}

function setRunning(controller) {
  running = controller;
  form.toggleAttribute("data-running", !!controller); // shows Stop in the place of Send
}

function showBudget(budget) {
  if (budget?.remaining == null) return; // unknown: the last known figures stay
  for (const name of ["remaining", "reserved", "spent"]) part(name).textContent = short(budget[name]);
  const share = (amount) => `${Math.min(100, (100 * amount) / budget.allocated || 0)}%`;
  const [spent, held] = document.querySelectorAll("#strip-bar [data-bar]");
  spent?.setAttribute("width", share(budget.spent));
  held?.setAttribute("x", share(budget.spent));
  held?.setAttribute("width", share(budget.reserved));
}

// Microcents for the eye, as the server writes them; whole numbers throughout, so no digit is invented.
function short(microcents) {
  const size = BigInt(Math.abs(microcents));
  const places = size >= 100_000_000n || !size ? 2 : size >= 1_000_000n ? 4 : 6;
  const scale = 10n ** BigInt(places);
  const step = 100_000_000n / scale;
  const [below, twice] = [size / step, (size % step) * 2n];
  const units = below + (twice > step || (twice === step && below % 2n) ? 1n : 0n);
  const cents = String(units % scale).padStart(places, "0");
  return `${microcents < 0 ? "−" : ""}$${(units / scale).toLocaleString("en-US")}.${cents}`;
}
