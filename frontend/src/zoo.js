// The zoo as the page holds it: columns by name, instances by row, and what is known of their weights.

function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export async function readZoo(element) {
  const stream = new Blob([bytesOf(element.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  element.textContent = "";
  return new Zoo(JSON.parse(await new Response(stream).text()));
}

export class Zoo {
  constructor(data) {
    Object.assign(this, data);
    this.columns = data.columns.map((column) => ({ ...column, shown: column.name }));
    if (data.map) {
      ["component 1", "component 2"].forEach((name, axis) =>
        this.columns.push({ name, shown: name, kind: "number", values: data.map.places[axis], hidden: true }),
      );
    }
    this.byName = new Map(this.columns.map((column) => [column.name, column]));
    this.ids = this.byName.get("id").values;
    this.rowOfId = new Map(this.ids.map((id, row) => [id, row]));
    this.placeOfRow = new Map();
    data.architectures.forEach((architecture, number) => {
      architecture.thumbnails = new Int8Array(bytesOf(architecture.thumbnails).buffer);
      if (architecture.statistics) architecture.statistics = new Float32Array(bytesOf(architecture.statistics).buffer);
      architecture.rows.forEach((row, position) => this.placeOfRow.set(row, [number, position]));
    });
  }

  get tableColumns() {
    return this.columns.filter((column) => !column.hidden);
  }

  get numbers() {
    return this.columns.filter((column) => column.kind === "number" && column.values.some(Number.isFinite));
  }

  architectureOf(row) {
    return this.architectures[this.placeOfRow.get(row)[0]];
  }

  // The cells of a row's thumbnail, -1 to 1, NaN where values are not finite.
  thumbnailOf(row) {
    const [number, position] = this.placeOfRow.get(row);
    const cells = this.thumbnail.shape[0] * this.thumbnail.shape[1];
    const bytes = this.architectures[number].thumbnails.subarray(position * cells, (position + 1) * cells);
    return Array.from(bytes, (byte) => (byte === this.thumbnail.not_finite ? NaN : byte / this.thumbnail.full));
  }

  // Statistics of each tensor of a row: [[name, shape, [mean, ...]], ...]; null where the page does not hold them.
  statisticsOf(row) {
    const [number, position] = this.placeOfRow.get(row);
    const { statistics, tensors } = this.architectures[number];
    if (!statistics) return null;
    const kinds = this.statistics.length;
    return tensors.map(([name, shape], index) => {
      const start = (position * tensors.length + index) * kinds;
      return [name, shape, Array.from(statistics.subarray(start, start + kinds))];
    });
  }
}

// Signed weights are blue below 0 and red above, as in every picture of prepkit; the ends are those of RdBu.
const ENDS = { below: [33, 102, 172], zero: [247, 247, 247], above: [178, 24, 43] };

export function weightColour(value) {
  if (Number.isNaN(value)) return [128, 128, 128];
  const end = value < 0 ? ENDS.below : ENDS.above;
  return ENDS.zero.map((zero, channel) => Math.round(zero + (end[channel] - zero) * Math.abs(value)));
}

export function drawThumbnail(canvas, zoo, row) {
  const [height, width] = zoo.thumbnail.shape;
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  zoo.thumbnailOf(row).forEach((value, cell) => image.data.set([...weightColour(value), 255], 4 * cell));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export function shownNumber(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Number.isInteger(value)) return Math.abs(value) < 1e6 ? String(value) : value.toLocaleString("en");
  return Number(value.toPrecision(5)).toString();
}
