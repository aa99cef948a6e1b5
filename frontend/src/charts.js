// Charts of the instances that the table's filters let through: scatter, histogram, and the map of weights.

import { BarChart, ScatterChart } from "echarts/charts";
import { DataZoomComponent, GridComponent, LegendComponent, TooltipComponent, VisualMapComponent } from "echarts/components";
import * as echarts from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";

import { shownNumber } from "./zoo.js";

echarts.use([
  BarChart,
  ScatterChart,
  DataZoomComponent,
  GridComponent,
  LegendComponent,
  TooltipComponent,
  VisualMapComponent,
  CanvasRenderer,
]);

const CLASSES = 12; // of a colour; the rest becomes one class
const CLASS_COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#994455", "#44aa99"]
  .concat(["#997700", "#6699cc", "#882255", "#666666"]);
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
const BINS = 40;
const NOTHING = "(nothing)";

function dark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function selection(parent, words, columns, chosen, changed) {
  const label = document.createElement("label");
  const select = document.createElement("select");
  label.append(`${words} `, select);
  for (const name of columns) select.add(new Option(name, name, false, name === chosen));
  select.addEventListener("change", changed);
  parent.append(label);
  return select;
}

export class Chart {
  constructor(element) {
    this.element = element;
    this.rows = [];
    this.stale = true;
    new ResizeObserver(() => this.chart?.resize()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.chart?.dispose();
      this.chart = null;
      this.draw();
    });
  }

  show(rows) {
    this.rows = rows;
    this.draw();
  }

  // A chart that is not visible has no size; it is drawn when its part of the page is shown.
  draw() {
    this.stale = this.element.offsetParent === null;
    if (this.stale) return;
    if (!this.chart) {
      this.chart = echarts.init(this.element, dark() ? "dark" : null, { renderer: "canvas" });
      this.chart.on("click", (event) => this.clicked?.(event));
    }
    this.chart.setOption({ backgroundColor: "transparent", animation: false, ...this.option() }, true);
  }
}

export class Scatter extends Chart {
  constructor(element, controls, zoo, chosen, opened) {
    super(element);
    this.zoo = zoo;
    const numbers = zoo.numbers.map((column) => column.name);
    const colours = [NOTHING, ...zoo.columns.filter((column) => column.name !== "id").map((column) => column.name)];
    const draw = () => this.draw();
    if (chosen.fixed) {
      this.axes = chosen.axes.map((name) => ({ value: name }));
    } else {
      this.axes = ["Across", "Up"].map((words, axis) => selection(controls, words, numbers, chosen.axes[axis], draw));
    }
    this.colour = selection(controls, "Colour", colours, chosen.colour ?? NOTHING, draw);
    this.clicked = (event) => opened(event.data.row);
  }

  option() {
    const { zoo } = this;
    const [across, up] = this.axes.map((axis) => zoo.byName.get(axis.value));
    const colour = zoo.byName.get(this.colour.value);
    const points = [];
    for (const row of this.rows) {
      const value = [across.values[row], up.values[row]];
      if (value.every(Number.isFinite)) points.push({ row, value });
    }
    const named = (column) => `${column.name}`;
    const option = {
      grid: { left: 70, right: 24, top: 44, bottom: 64 },
      xAxis: { type: "value", scale: true, name: named(across), nameLocation: "middle", nameGap: 28 },
      yAxis: { type: "value", scale: true, name: named(up), nameLocation: "middle", nameGap: 52 },
      tooltip: {
        confine: true,
        formatter: ({ data }) => this.words(data.row, [across, up, colour]),
      },
      dataZoom: [
        { type: "inside", xAxisIndex: 0, filterMode: "none" },
        { type: "inside", yAxisIndex: 0, filterMode: "none" },
      ],
    };
    const size = points.length > 3000 ? 4 : 7;
    const series = (name, data, itemStyle) => ({ type: "scatter", name, data, symbolSize: size, large: false, itemStyle });
    if (!colour) return { ...option, series: [series("instances", points, { color: CLASS_COLOURS[0], opacity: 0.7 })] };
    if (colour.kind === "number") {
      const known = points.filter(({ row }) => Number.isFinite(colour.values[row]));
      for (const point of known) point.value = [...point.value, colour.values[point.row]];
      const values = known.map(({ value }) => value[2]);
      const [least, largest] = values.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
      const others = points.filter(({ value }) => value.length === 2);
      const range = { min: least, max: largest === least ? least + 1 : largest };
      return {
        ...option,
        visualMap: {
          ...range,
          dimension: 2,
          seriesIndex: 0,
          calculable: true,
          orient: "horizontal",
          left: "center",
          top: 0,
          itemHeight: 120,
          text: ["", colour.name],
          formatter: shownNumber,
          inRange: { color: VIRIDIS },
        },
        series: [
          series(colour.name, known, { opacity: 0.8 }),
          series("no value", others, { color: "#888888", opacity: 0.5 }),
        ],
      };
    }
    const counts = new Map();
    for (const { row } of points) {
      const name = String(colour.values[row] ?? "no value");
      counts.set(name, [...(counts.get(name) ?? []), { row, value: [across.values[row], up.values[row]] }]);
    }
    const classes = [...counts].sort((a, b) => b[1].length - a[1].length);
    const rest = classes.splice(CLASSES).flatMap(([, own]) => own);
    if (rest.length) classes.push(["others", rest]);
    return {
      ...option,
      legend: { type: "scroll", top: 0, formatter: (name) => (name.length > 24 ? `${name.slice(0, 21)}...` : name) },
      series: classes.map(([name, own], index) =>
        series(name, own, { color: CLASS_COLOURS[index % CLASS_COLOURS.length], opacity: 0.75 }),
      ),
    };
  }

  words(row, columns) {
    const lines = columns.filter(Boolean).map((column) => `${column.name}: ${shownNumber(column.values[row])}`);
    return [this.zoo.ids[row], ...new Set(lines)].map(echarts.format.encodeHTML).join("<br>");
  }
}

export class Histogram extends Chart {
  constructor(element, controls, zoo, chosen) {
    super(element);
    this.zoo = zoo;
    const names = zoo.columns.filter((column) => !["id"].includes(column.name)).map((column) => column.name);
    this.column = selection(controls, "Histogram of", names, chosen, () => this.draw());
  }

  option() {
    const column = this.zoo.byName.get(this.column.value);
    const { names, counts } = column.kind === "number" ? this.bins(column) : this.classes(column);
    return {
      grid: { left: 60, right: 24, top: 24, bottom: 64 },
      tooltip: { trigger: "axis", confine: true, valueFormatter: (count) => `${count} instances` },
      xAxis: { type: "category", data: names, name: column.name, nameLocation: "middle", nameGap: 30 },
      yAxis: { type: "value", name: "instances", minInterval: 1 },
      series: [{ type: "bar", data: counts, barCategoryGap: "4%", itemStyle: { color: CLASS_COLOURS[0] } }],
    };
  }

  bins(column) {
    const values = this.rows.map((row) => column.values[row]).filter(Number.isFinite);
    if (!values.length) return { names: [], counts: [] };
    const [least, largest] = values.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
    const distinct = new Set(values);
    if (distinct.size <= BINS && values.every(Number.isInteger)) {
      const sorted = [...distinct].sort((a, b) => a - b);
      const counts = new Map(sorted.map((value) => [value, 0]));
      for (const value of values) counts.set(value, counts.get(value) + 1);
      return { names: sorted.map(shownNumber), counts: [...counts.values()] };
    }
    const width = (largest - least) / BINS || 1;
    const counts = new Array(BINS).fill(0);
    for (const value of values) counts[Math.min(Math.floor((value - least) / width), BINS - 1)] += 1;
    const names = counts.map((_, bin) => `${shownNumber(least + bin * width)} to ${shownNumber(least + (bin + 1) * width)}`);
    return { names, counts };
  }

  classes(column) {
    const counts = new Map();
    for (const row of this.rows) {
      const name = String(column.values[row] ?? "no value");
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    const sorted = [...counts].sort((a, b) => b[1] - a[1]);
    const rest = sorted.splice(BINS).reduce((sum, [, count]) => sum + count, 0);
    if (rest) sorted.push(["others", rest]);
    return { names: sorted.map(([name]) => name), counts: sorted.map(([, count]) => count) };
  }
}
