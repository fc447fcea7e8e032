// Small helps on every page; each page works without them.

// The second click of a double click is not a second order: it would be told that the first has been carried out, such
// as that its link is used. A form can be sent again after a while, and on a page that the browser brings back.
const SENT_FOR = 8000;
let sent = new WeakMap();
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  sent = new WeakMap();
  for (const button of document.querySelectorAll("button[data-said]")) restore(button);
});
addEventListener("submit", (event) => {
  if (event.defaultPrevented) return; // a page's own script sends it
  if (event.timeStamp - (sent.get(event.target) ?? -Infinity) < SENT_FOR) event.preventDefault();
  else {
    sent.set(event.target, event.timeStamp);
    for (const button of event.target.querySelectorAll("button[data-sending]")) saySending(button);
  }
});

// What takes a while says so in its button, which stays as good as ever: when nothing came of it, it can be pressed again.
function saySending(button) {
  button.dataset.said ??= button.textContent;
  button.textContent = button.dataset.sending;
  setTimeout(() => restore(button), SENT_FOR);
}

function restore(button) {
  button.textContent = button.dataset.said ?? button.textContent;
  delete button.dataset.said;
}

for (const form of document.querySelectorAll("form[data-autosubmit]")) form.requestSubmit();

for (const button of document.querySelectorAll("button[data-copy]:not([data-copy=''])")) {
  if (!navigator.clipboard) continue; // only offered where it can work
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent.trim());
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected, copy it";
    }
  });
}

for (const room of document.querySelectorAll("[data-wait]")) look(room.dataset.wait);

// Asks whether it is time, and loads the page anew only then: one that did so every two seconds would be read out from
// its top each time, and take the focus away. While the server cannot say, the room stays.
async function look(seconds) {
  await new Promise((done) => setTimeout(done, seconds * 1000));
  const answer = await fetch("", { method: "HEAD", redirect: "manual" }).catch(() => null);
  const isSame = answer?.status === 202 && answer.headers.get("Retry-After") === seconds;
  if (!answer || answer.status >= 400 || isSame) look(seconds);
  else location.reload();
}

// Whoever ticks one of several means those that are ticked, and not all.
addEventListener("change", ({ target }) => {
  if (target.matches("[data-ticks]:checked")) target.form.elements.which.value = "some";
});

for (const form of document.querySelectorAll("form[data-suggest-slug]")) {
  const { name, slug } = form.elements;
  let untouched = slug.value === "";
  slug.addEventListener("input", () => (untouched = slug.value === ""));
  name.addEventListener("input", () => {
    if (untouched) slug.value = slugFrom(name.value);
  });
}

// Letters that are no other letter with a mark.
const SPELT = { ß: "ss", æ: "ae", œ: "oe", ø: "o", ł: "l", đ: "d", ð: "d", þ: "th", ı: "i" };

// "Åse & Söhne GmbH" → "ase-sohne-gmbh"; the server has the last word on what a slug may be.
function slugFrom(name) {
  const plain = name.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase().replace(/[ßæœøłđðþı]/g, (one) => SPELT[one]);
  return plain.replace(/[^a-z0-9]+/g, "-").slice(0, 32).replace(/^-+|-+$/g, "");
}
