"""Plots as inline SVG: axes, lines, points, bars. No library, so that the page needs nothing."""
import html
import math

COLOURS = ["#2563a8", "#c2571a", "#3a8a4d", "#8a4fa3", "#777777"]
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 44


class Axis:
    def __init__(self, low, high, log=False, ticks=None):
        self.low, self.high, self.log = low, high, log
        self.ticks = ticks or (powers(low, high) if log else steps(low, high))

    def at(self, value):
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def steps(low, high):
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step) * step
    return [first + step * number for number in range(int((high - first) / step + 1e-9) + 1)]


def powers(low, high):
    factors = (1, 2, 5) if high / low < 200 else (1, 10 ** 0.5, 10)[:1]
    first = math.floor(math.log10(low))
    found = [factor * 10**power for power in range(first, math.ceil(math.log10(high)) + 1) for factor in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def number(value):
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


class Plot:
    def __init__(self, x, y, x_name, y_name, width=520, height=320):
        self.x, self.y, self.width, self.height = x, y, width, height
        self.parts, self.names = [], []
        right, bottom = width - RIGHT, height - BOTTOM
        for tick in y.ticks:
            at = self.down(tick)
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.text(LEFT - 7, at + 4, number(tick), "end")
        for tick in x.ticks:
            at = self.across(tick)
            self.parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
            self.text(at, bottom + 17, number(tick), "middle")
        self.parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
        self.text((LEFT + right) / 2, height - 6, x_name, "middle", "name")
        middle = (TOP + bottom) / 2
        self.parts.append(
            f'<text class="name" text-anchor="middle" transform="translate(15 {middle}) rotate(-90)">{html.escape(y_name)}</text>'
        )

    def across(self, value):
        return LEFT + self.x.at(value) * (self.width - LEFT - RIGHT)

    def down(self, value):
        return self.height - BOTTOM - self.y.at(value) * (self.height - TOP - BOTTOM)

    def text(self, x, y, text, anchor="start", kind="tick"):
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>')

    def line(self, points, colour, name=None, dashed=False, marks=True):
        places = [(self.across(x), self.down(y)) for x, y in points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if marks:
            self.points(points, colour)
        if name:
            self.names.append((name, colour, dashed))

    def points(self, points, colour, name=None, size=3.5):
        for x, y in points:
            self.parts.append(
                f'<circle cx="{self.across(x):.1f}" cy="{self.down(y):.1f}" r="{size}" fill="{colour}"><title>{number(x)}, {number(y)}</title></circle>'
            )
        if name:
            self.names.append((name, colour, None))

    def svg(self):
        """The plot with its legend above."""
        keys = []
        for name, colour, dashed in self.names:
            mark = "●" if dashed is None else "╌" if dashed else "━"
            keys.append(f'<span><b style="color:{colour}">{mark}</b> {html.escape(name)}</span>')
        legend = f'<figcaption>{"".join(keys)}</figcaption>'
        return f'{legend}<svg viewBox="0 0 {self.width} {self.height}" role="img">{"".join(self.parts)}</svg>'


def bars(groups, unit, width=520):
    """Horizontal bars: (name, value, text behind it) in groups."""
    largest = max(value for _, rows in groups for _, value, _ in rows)
    parts, at = [], 8
    for title, rows in groups:
        parts.append(f'<text class="name" x="0" y="{at + 12}">{html.escape(title)}</text>')
        at += 22
        for index, (name, value, text) in enumerate(rows):
            length = (width - 250) * value / largest
            parts.append(f'<text class="tick" x="98" y="{at + 13}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(f'<rect x="105" y="{at}" width="{length:.1f}" height="18" rx="2" fill="{COLOURS[index % 2]}"/>')
            parts.append(f'<text class="tick" x="{111 + length:.1f}" y="{at + 13}">{html.escape(f"{number(value)} {unit}{text}")}</text>')
            at += 24
        at += 10
    return f'<svg viewBox="0 0 {width} {at}" role="img">{"".join(parts)}</svg>'


def gauge(value, least, aim, lower):
    """Where a value stands between the two bars: the part that is good is tinted."""
    ends = [end for end in (value, least, aim) if end is not None]
    high = 1.15 * max(ends)
    at = lambda number: 170 * min(number, high) / high
    good = (0, at(least)) if lower else (at(least), 170)
    parts = [f'<rect x="0" y="5" width="170" height="10" rx="5" fill="#e6e9ec"/>']
    parts.append(f'<rect x="{good[0]:.1f}" y="5" width="{good[1] - good[0]:.1f}" height="10" fill="#cfe6d4"/>')
    for bar, colour in ((least, "#666"), (aim, "#3a8a4d")):
        if bar is not None:
            parts.append(f'<line x1="{at(bar):.1f}" x2="{at(bar):.1f}" y1="2" y2="18" stroke="{colour}" stroke-width="1.5"/>')
    if value is not None:
        reached = value <= least if lower else value >= least
        parts.append(f'<circle cx="{at(value):.1f}" cy="10" r="5" fill="{"#2563a8" if reached else "#b3261e"}"/>')
    return f'<svg class="gauge" viewBox="-6 0 182 20">{"".join(parts)}</svg>'
