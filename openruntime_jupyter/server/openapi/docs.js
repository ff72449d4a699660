"use strict";
const notice = document.getElementById("notice");
const routes = [...document.querySelectorAll("details.route")];

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  }
}

async function copy(button) {
  const text = button.nextElementSibling.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard API needs TLS: select the text and use the older command instead.
    getSelection().selectAllChildren(button.nextElementSibling);
    document.execCommand("copy");
  }
  notice.textContent = "Copied";
  button.classList.add("done");
  setTimeout(() => {
    notice.textContent = "";
    button.classList.remove("done");
  }, 1500);
}

for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", () => copy(button));
}
for (const [name, open] of [["open-all", true], ["close-all", false]]) {
  document.getElementById(name).addEventListener("click", () => {
    for (const route of routes) route.open = open;
  });
}
document.getElementById("filter").addEventListener("input", (event) => {
  if (event.target.value) document.getElementById("contents").open = true;
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (node) => words.every((word) => node.textContent.toLowerCase().includes(word));
  for (const route of routes) route.hidden = !fits(route.querySelector("summary"));
  for (const link of document.querySelectorAll("nav li")) {
    const target = document.getElementById(link.firstElementChild.hash.slice(1));
    link.hidden = target.hidden || (!target.matches("details") && words.length > 0);
  }
  for (const section of document.querySelectorAll("main section")) {
    const inside = [...section.querySelectorAll("details.route")];
    section.hidden = words.length > 0 && !inside.some((route) => !route.hidden);
  }
  for (const title of document.querySelectorAll("nav h2")) {
    title.hidden = [...title.nextElementSibling.children].every((link) => link.hidden);
  }
});
// On wide screens the contents are always open.
const wide = matchMedia("(min-width: 1000px)");
const unfold = () => { document.getElementById("contents").open = wide.matches; };
wide.addEventListener("change", unfold);
unfold();
addEventListener("hashchange", openTarget);
openTarget();
