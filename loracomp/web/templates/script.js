// The pages work without this. It refreshes the overview in place, and gives keys to choices.
"use strict";
const live = document.querySelector("[data-live]");
if (live) setInterval(async () => {
  const response = await fetch(location.href).catch(() => null);
  if (!response || !response.ok || response.redirected) return;
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html").querySelector("[data-live]");
  if (fresh) live.replaceChildren(...fresh.childNodes);
}, 5000);
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const choice = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (choice) choice.click();
});
document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
});
