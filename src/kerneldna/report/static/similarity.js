
// How alike layers are: a run's matrices side by side.

function drawSimilarities() {
  const place = section("cka");
  if (!place) return;
  const compared = runs.flatMap((run, index) => (run.cka.length ? [index] : []));
  const blanks = runs.some((run) => run.cka.some((matrix) => matrix.values.flat().includes(null)));
  const swatch = svg("svg", { class: "heat gap", width: 22, height: 12, "aria-hidden": "true" }, svg("rect", { class: "blank", width: 22, height: 12 }));
  const grid = html("div", { class: "grid halves" });
  place.box.append(colourScale("0", "1", alike, ...(blanks ? [swatch, "not comparable"] : [])), grid);
  choose(place.whole, compared, (index) => {
    grid.replaceChildren();
    for (const matrix of runs[index].cka) {
      const box = html("div", {});
      const note = matrix.note ? [html("p", { class: "note" }, matrix.note)] : [];
      grid.append(html("div", { class: "card" }, html("h3", {}, matrix.title), box, ...note));
      fit(box, (width) => box.replaceChildren(similarityPicture(matrix, width)));
    }
  });
}

const LETTER = 6.1; // width of a letter of a label, in pixels

/** Return where consecutive names begin that stand in one stage: [name, first, one past the last]. */
function stages(names) {
  const found = [];
  names.forEach((name, place) => {
    const parts = name.split(".");
    const stage = /\d/.test(parts[0]) || parts.length < 3 ? parts[0] : `${parts[0]}.${parts[1]}`;
    if (found.at(-1)?.[0] === stage) found.at(-1)[2] = place + 1;
    else found.push([stage, place, place + 1]);
  });
  return found;
}

function similarityPicture({ title, rows, columns, values }, width) {
  const longest = (names) => Math.ceil(LETTER * Math.max(...names.map((name) => name.length))) + 8;
  const fitting = (wide) => Math.min((width - wide - 2) / columns.length, 44);
  let [wide, tall] = [longest(rows), longest(columns)];
  const named = fitting(wide) >= 13;
  const [down, across] = [stages(rows), stages(columns)];
  if (!named) [wide, tall] = [longest(down.map(([name]) => name)), longest(across.map(([name]) => name))];
  const side = Math.max(fitting(wide), 3);
  const gap = side >= 8 ? 1 : 0;
  const [right, bottom] = [wide + side * columns.length, side * rows.length];
  const label = `${title}: ${rows.length} by ${columns.length} layers; arrow keys go through the cells`;
  const picture = svg("svg", { class: "heat", width: Math.ceil(right) + 1, height: Math.ceil(bottom + tall) + 2, role: "img", "aria-label": label });
  const beside = (text, at) => svg("text", { x: wide - 6, y: at + 4, "text-anchor": "end" }, text);
  const below = (text, at) => svg("text", { x: 0, y: 0, "text-anchor": "end", transform: `translate(${at + 4} ${bottom + 6}) rotate(-90)` }, text);
  const names = { rows: [], columns: [] };
  if (named) {
    names.rows = rows.map((name, place) => beside(name, (place + 0.5) * side));
    names.columns = columns.map((name, place) => below(name, wide + (place + 0.5) * side));
    picture.append(...names.rows, ...names.columns);
  } else {
    picture.append(
      ...legible(down, side).map(([name, first, last]) => beside(name, ((first + last) / 2) * side)),
      ...legible(across, side).map(([name, first, last]) => below(name, wide + ((first + last) / 2) * side)),
    );
  }
  const light = (row, column) => {
    names.rows.forEach((text, place) => text.classList.toggle("on", place === row));
    names.columns.forEach((text, place) => text.classList.toggle("on", place === column));
  };
  cells(picture, values, {
    left: wide,
    top: 0,
    side,
    gap,
    colour: alike,
    write: (value) => (side >= 34 ? withSign(value, 2).replace("+", "") : null),
    show: (row, column, x, y) => {
      const value = values[row][column];
      const said = value === null ? "not comparable" : withSign(value, 3).replace("+", "");
      light(row, column);
      tipAt(picture, x, y, html("b", {}, `CKA ${said}`), html("p", {}, `row: ${rows[row]}`), html("p", {}, `column: ${columns[column]}`));
    },
    hide: () => light(-1, -1),
  });
  return picture;
}

/** Return the stages whose names do not run into one another. */
function legible(found, side) {
  let free = -Infinity;
  return found.filter(([, first, last]) => {
    const middle = ((first + last) / 2) * side;
    if (middle - 6 < free) return false;
    free = middle + 6;
    return true;
  });
}

drawSimilarities();
