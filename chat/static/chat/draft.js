// A message that was not taken because its writer is signed out: kept in this tab while they log in, and put back for
// the same member in the same conversation. For anybody else it is forgotten.

const place = () => `draft:${location.pathname}`;

export function keepDraft(form) {
  const { prompt, max_tokens: cap, model } = form.elements;
  const draft = { member: form.dataset.member, prompt: prompt.value, cap: cap?.value, model: model?.value };
  if (prompt.value.trim()) sessionStorage.setItem(place(), JSON.stringify(draft));
}

export function forgetDraft() {
  sessionStorage.removeItem(place());
}

// Whether there was one.
export function takeDraft(form) {
  const draft = JSON.parse(sessionStorage.getItem(place()) ?? "null");
  forgetDraft();
  const { prompt, max_tokens: cap, model } = form.elements;
  if (draft?.member !== form.dataset.member || prompt.value) return false;
  prompt.value = draft.prompt;
  if (cap) cap.value = draft.cap;
  if (model && draft.model) model.value = draft.model;
  return true;
}
