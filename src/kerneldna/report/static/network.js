
// Networks: one run at a time; pointing at a layer shows its family alone.

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

const panels = [...document.querySelectorAll("#network .panel")];
if (panels.length > 1) {
  const indices = panels.map((panel) => Number(panel.dataset.run));
  for (const panel of panels) panel.querySelector(".of").hidden = true;
  choose(document.getElementById("network"), indices, (index) => {
    panels.forEach((panel, place) => (panel.hidden = indices[place] !== index));
  });
}
