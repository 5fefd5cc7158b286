
// Which class is taken for which: a row a class, a column an answer.

const rare = (share) => alike(Math.sqrt(share));

function confusionPicture({ classes, counts }, width) {
  const letter = 1.15 * LETTER; // names of classes have more capitals than those of layers
  const longest = Math.min(Math.ceil(letter * Math.max(...classes.map((name) => name.length))) + 10, width / 3);
  const side = Math.max(Math.min((width - longest - 2) / classes.length, 44), 6);
  const fits = side >= 12;
  const cut = (name) => (letter * name.length + 8 > longest ? `${name.slice(0, Math.floor((longest - 8) / letter) - 1)}…` : name);
  const [right, bottom] = [longest + side * classes.length, side * classes.length];
  const label = `${classes.length} classes and what they are taken for; arrow keys go through the cells`;
  const picture = svg("svg", { class: "heat", width: Math.ceil(right) + 1, height: Math.ceil(bottom + (fits ? longest : 0)) + 2, role: "img", "aria-label": label });
  const names = { rows: [], columns: [] };
  if (fits) {
    names.rows = classes.map((name, place) => svg("text", { x: longest - 6, y: (place + 0.5) * side + 4, "text-anchor": "end" }, cut(name)));
    names.columns = classes.map((name, place) =>
      svg("text", { x: 0, y: 0, "text-anchor": "end", transform: `translate(${longest + (place + 0.5) * side + 4} ${bottom + 6}) rotate(-90)` }, cut(name)),
    );
    picture.append(...names.rows, ...names.columns);
  }
  const totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
  const light = (row, column) => {
    names.rows.forEach((text, place) => text.classList.toggle("on", place === row));
    names.columns.forEach((text, place) => text.classList.toggle("on", place === column));
  };
  // a class without an image has no shares
  const shares = counts.map((row, place) => row.map((count) => (totals[place] ? { count, of: totals[place] } : null)));
  cells(picture, shares, {
    left: longest,
    top: 0,
    side,
    gap: side >= 8 ? 1 : 0,
    colour: ({ count, of }) => rare(count / of),
    write: ({ count }) => (count ? String(count) : null),
    show: (row, column, x, y) => {
      const found = shares[row][column];
      const share = found && `${found.count} of ${found.of}, ${((100 * found.count) / found.of).toFixed(1)} %`;
      light(row, column);
      tipAt(picture, x, y, html("b", {}, share ?? "no image"), html("p", {}, `class: ${classes[row]}`), html("p", {}, `taken for: ${classes[column]}`));
    },
    hide: () => light(-1, -1),
  });
  return picture;
}

function drawConfusions() {
  for (const card of document.querySelectorAll("#mistakes .matrix")) {
    const { confusion } = runs[card.closest(".panel").dataset.run];
    const box = html("div", {});
    card.hidden = false;
    card.append(html("h3", {}, "Taken for"), colourScale("0", "100 %", rare), box);
    fit(box, (width) => box.replaceChildren(confusionPicture(confusion, width)));
  }
}

drawConfusions();
choosePanels("mistakes");
