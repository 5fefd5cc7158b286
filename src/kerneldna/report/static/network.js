
// Networks: pointing at a layer shows its family alone.

for (const picture of document.querySelectorAll("svg.stage")) {
  const members = [...picture.querySelectorAll("[data-family]")];
  const focus = (family) => {
    picture.classList.toggle("focus", family !== undefined);
    for (const member of members) member.classList.toggle("on", member.dataset.family === family);
  };
  for (const member of members) {
    member.addEventListener("pointerenter", () => focus(member.dataset.family));
    member.addEventListener("pointerleave", () => focus(undefined));
  }
}

choosePanels("network");
