//! Plots as SVG: colours that the page's style turns for dark rooms, and words for those who can't see them.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::RGBColor;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::StartPhase;
use crate::statistics::significant;
use crate::text::{sanitize, shorten};

/// How wide a plot is, in pixels: as wide as a phone, so that its letters are as large as those around it.
pub(super) const WIDTH: u32 = 380;

/// How wide a timeline is, in pixels: a phone shows it by and by.
const TIMELINE_WIDTH: u32 = 760;

/// The height of letters, in plotters' pixels: it divides them by 1.24.
const LETTERS: f64 = 12.0 * 1.24;

/// How many characters of 12 pixels fit into a plot.
const LABEL: usize = 52;

// The style sheet has these colours too.
const INK: RGBColor = RGBColor(0x10, 0x20, 0x30);
const AXIS: RGBColor = RGBColor(0x80, 0x80, 0x81);
const GRID: RGBColor = RGBColor(0xd9, 0xd9, 0xda);
const BAND: RGBColor = RGBColor(0xe6, 0xe9, 0xee);
const LIGHT: RGBColor = RGBColor(0xb0, 0xb0, 0xb1);
const START: RGBColor = RGBColor(0x8a, 0x95, 0xa5);
const LOGIN: RGBColor = RGBColor(0x8e, 0x6b, 0xbf);
const VERIFY: RGBColor = RGBColor(0x8b, 0x5e, 0x3c);

/// The colours of series, which people tell apart whose eyes tell few (those of Okabe and Ito).
const SERIES: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// The marks of series, for those who see no colours, and their names.
const MARKS: [&str; 4] = ["disc", "triangle", "cross", "square"];

/// The mark and the number of the colour of a series.
pub(super) fn mark(series: usize) -> (&'static str, usize) {
    (MARKS[series % MARKS.len()], series % SERIES.len())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// What a plot is called and says.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    /// Of all that are on the page.
    pub(super) id: usize,
    pub(super) title: &'a str,
    pub(super) description: &'a str,
}

/// Draws a plot. One that can't be drawn is left out: the table beside it has its figures.
fn draw(about: About<'_>, size: (u32, u32), fill: impl FnOnce(&Area<'_>) -> Drawn) -> Option<String> {
    let mut drawn = String::new();
    let root = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
    fill(&root).and_then(|()| Ok(root.present()?)).ok()?;
    drop(root);
    // Its first tag has a size of its own and no words.
    let (_, shapes) = drawn.split_once('>')?;
    let shapes = shapes.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
    let About { id, title, description } = about;
    let (title, description) = (escape(title), escape(description));
    let (width, height) = size;
    Some(format!(
        "<svg class=\"plot\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"t{id}\" aria-describedby=\"d{id}\">\
         <title id=\"t{id}\">{title}</title><desc id=\"d{id}\">{description}</desc>{shapes}"
    ))
}

fn escape(text: &str) -> String {
    let text = sanitize(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

fn letters(position: HPos) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", LETTERS)).color(&INK);
    style.pos(Pos::new(position, VPos::Center))
}

/// One mark with its interval.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) series: usize,
    pub(super) estimate: f64,
    pub(super) interval: Option<(f64, f64)>,
}

/// Marks under one label, or none where it is empty.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) entries: Vec<Entry>,
}

/// Marks with intervals in rows, along one axis. What lies within `band` is shaded, with a line in its middle, beside the
/// marks alone: it crosses no label.
pub(super) fn rows(about: About<'_>, rows: &[Row], axis: &str, band: Option<(f64, f64)>) -> Option<String> {
    const HEAD: i32 = 22;
    const GAP: i32 = 8;
    const LINE: i32 = 18;
    const FOOT: i32 = 44;
    let finite = |value: &f64| value.is_finite();
    let all = || rows.iter().flat_map(|row| &row.entries);
    let estimates: Vec<f64> = all().map(|entry| entry.estimate).filter(finite).collect();
    let (low, high) = bounds(&estimates)?;
    // One interval that is far wider than what it is about would leave nothing to see of the others.
    let reach = 3.0 * (high - low).max(estimates.iter().fold(0.0, |all, value| value.abs().max(all)) / 3.0);
    let ends = all().filter_map(|entry| entry.interval).flat_map(|(low, high)| [low, high]).filter(finite);
    let ends = ends.map(|end| end.clamp(low - reach, high + reach));
    let ends: Vec<f64> = ends.chain(estimates).chain(band.into_iter().flat_map(|(a, b)| [a, b])).collect();
    let (low, high) = padded(bounds(&ends)?);
    let head = |row: &Row| if row.label.is_empty() { GAP } else { HEAD };
    let lines = |row: &Row| i32::try_from(row.entries.len()).map(|lines| LINE * lines);
    let heights = rows.iter().map(|row| Some(head(row) + lines(row).ok()?));
    let inner: i32 = heights.sum::<Option<i32>>()?;
    let size = (WIDTH, u32::try_from(inner + FOOT + 8).ok()?);
    draw(about, size, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(4)
            .margin_left(14)
            .margin_right(14)
            .x_label_area_size(FOOT - 4)
            .build_cartesian_2d(low..high, f64::from(inner)..0.0)?;
        mesh(&mut chart, axis, "", if band.is_some() { 8 } else { 5 }, 0)?;
        let mut y = 0;
        for row in rows {
            let label = shorten(&sanitize(&row.label), LABEL).into_owned();
            chart.draw_series([Text::new(label, (low, f64::from(y + HEAD / 2)), letters(HPos::Left))])?;
            y += head(row);
            if let Some((from, to)) = band {
                let (top, foot, middle) =
                    (f64::from(y - 4), f64::from(y + lines(row)? - 2), f64::midpoint(from, to));
                chart.draw_series([Rectangle::new([(from, top), (to, foot)], BAND.filled())])?;
                chart.draw_series([PathElement::new([(middle, top), (middle, foot)], AXIS)])?;
            }
            for entry in row.entries.iter() {
                let at = f64::from(y + LINE / 2 - 3);
                if let Some((from, to)) = entry.interval {
                    let colour = SERIES[entry.series % SERIES.len()];
                    let line = [(from.clamp(low, high), at), (to.clamp(low, high), at)];
                    chart.draw_series([PathElement::new(line, colour.stroke_width(2))])?;
                    // An end that is not shown has an arrow, others a bar.
                    for (end, shown, inward) in [(from, low, 7), (to, high, -7)] {
                        let is_cut = if inward > 0 { end < shown } else { end > shown };
                        let shape = if is_cut {
                            [(inward, -4), (0, 0), (inward, 4)]
                        } else {
                            [(0, -4), (0, 0), (0, 4)]
                        };
                        let place = EmptyElement::at((end.clamp(low, high), at));
                        chart.draw_series([place + PathElement::new(shape, colour.stroke_width(2))])?;
                    }
                }
                if entry.estimate.is_finite() {
                    point(&mut chart, (entry.estimate, at), entry.series)?;
                }
                y += LINE;
            }
        }
        Ok(())
    })
}

/// A trial without a value that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    Failed,
    Void,
}

/// What the axis of the order is called. It has whole numbers alone.
pub(super) const PLACES: &str = "place in the run";

/// Values in the order in which they were measured, and in a strip below them the trials that have none.
pub(super) fn order(
    about: About<'_>,
    points: &[(usize, f64, f64)],
    lost: &[(usize, f64, Lost)],
    breaks: &[f64],
    axes: (&str, &str),
) -> Option<String> {
    const STRIP: f64 = 0.13;
    let xs: Vec<f64> = points.iter().map(|(_, x, _)| *x).chain(lost.iter().map(|(_, x, _)| *x)).collect();
    let ys: Vec<f64> = points.iter().map(|(_, _, y)| *y).collect();
    let (x, y) = (padded(bounds(&xs)?), padded(bounds(&ys)?));
    let strip = if lost.is_empty() { 0.0 } else { (y.1 - y.0) * STRIP };
    let floor = y.0 - strip;
    draw(about, (WIDTH, 230), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .margin_right(12)
            .x_label_area_size(40)
            .y_label_area_size(beside(y))
            .build_cartesian_2d(x.0..x.1, floor..y.1)?;
        if strip > 0.0 {
            chart.draw_series([Rectangle::new([(x.0, floor), (x.1, y.0)], BAND.filled())])?;
        }
        mesh(&mut chart, axes.0, axes.1, 6, 5)?;
        for at in breaks {
            chart.draw_series([PathElement::new([(*at, floor), (*at, y.1)], AXIS)])?;
        }
        for (series, x, lost) in lost {
            let (at, line) = ((*x, floor + strip / 2.0), SERIES[series % SERIES.len()].stroke_width(2));
            match lost {
                Lost::Failed => {
                    let diamond = [(0, -5), (5, 0), (0, 5), (-5, 0), (0, -5)];
                    chart.draw_series([EmptyElement::at(at) + PathElement::new(diamond, line)])?;
                }
                Lost::Void => drop(chart.draw_series([Circle::new(at, 4, line)])?),
            }
        }
        for (series, x, y) in points {
            point(&mut chart, (*x, *y), *series)?;
        }
        Ok(())
    })
}

/// Lines over time, one of each series.
pub(super) fn lines(about: About<'_>, series: &[Vec<(f64, f64)>], axes: (&str, &str)) -> Option<String> {
    let all = || series.iter().flatten();
    let x = padded(bounds(&all().map(|(x, _)| *x).collect::<Vec<_>>())?);
    let (_, top) = padded(bounds(&all().map(|(_, y)| *y).chain([0.0]).collect::<Vec<_>>())?);
    draw(about, (WIDTH, 190), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .margin_right(12)
            .x_label_area_size(40)
            .y_label_area_size(beside((0.0, top)))
            .build_cartesian_2d(x.0..x.1, 0.0..top)?;
        mesh(&mut chart, axes.0, axes.1, 6, 4)?;
        for (index, points) in series.iter().enumerate() {
            let colour = SERIES[index % SERIES.len()];
            chart.draw_series([PathElement::new(points.clone(), colour.stroke_width(1))])?;
        }
        Ok(())
    })
}

/// What an axis of time is called.
pub(super) const SINCE_THE_BEGINNING: &str = "seconds since the run began";

/// What a stretch of time was spent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// A machine comes up.
    Up(StartPhase),
    Done,
    Failed,
    Void,
    Step,
    Teardown,
}

impl Phase {
    fn colour(self) -> RGBColor {
        match self {
            Self::Up(StartPhase::Request) => LIGHT,
            Self::Up(StartPhase::Start) => START,
            Self::Up(StartPhase::Boot) => SERIES[4],
            Self::Up(StartPhase::Login) => LOGIN,
            Self::Up(StartPhase::Verify) => VERIFY,
            Self::Up(StartPhase::SetUp) => SERIES[0],
            Self::Done => SERIES[2],
            Self::Failed => SERIES[1],
            Self::Void => AXIS,
            Self::Step => SERIES[5],
            Self::Teardown => SERIES[3],
        }
    }

    /// What it is called; a part of a machine's way up has its own name.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Up(_) => None,
            Self::Done => Some("trial"),
            Self::Failed => Some("failed or gone"),
            Self::Void => Some("void"),
            Self::Step => Some("step"),
            Self::Teardown => Some("teardown"),
        }
    }

    /// Its colour as the page has it.
    pub(super) fn fill(self) -> String {
        let RGBColor(red, green, blue) = self.colour();
        format!("#{red:02X}{green:02X}{blue:02X}")
    }
}

/// A row of a timeline.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) label: String,
    /// In seconds.
    pub(super) stretches: Vec<(f64, f64, Phase)>,
    /// How busy the machine was, from 0 to 1, by the second.
    pub(super) busy: Vec<(f64, f64)>,
    /// Whether it is what others waited for.
    pub(super) critical: bool,
}

/// What happened when, a lane each.
pub(super) fn timeline(about: About<'_>, lanes: &[Lane], end: f64) -> Option<String> {
    const LANE: i32 = 20;
    const BUSY: i32 = 14;
    const LABELS: i32 = 150;
    let height = |lane: &Lane| if lane.busy.is_empty() { LANE } else { LANE + BUSY };
    let inner: i32 = lanes.iter().map(height).sum();
    let size = (TIMELINE_WIDTH, u32::try_from(inner + 52).ok()?);
    let end = end.max(1.0);
    draw(about, size, |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(40)
            .margin_left(LABELS)
            .build_cartesian_2d(0.0..end, f64::from(inner)..0.0)?;
        mesh(&mut chart, SINCE_THE_BEGINNING, "", 10, 0)?;
        let mut top = 0;
        for lane in lanes {
            // Beside the plot: the plotting area itself would cut it off.
            let at = chart.backend_coord(&(0.0, f64::from(top + LANE / 2)));
            let mut style = letters(HPos::Right);
            if lane.critical {
                style.font = style.font.style(FontStyle::Bold);
            }
            root.draw_text(&shorten(&sanitize(&lane.label), 20), &style, (at.0 - 8, at.1))?;
            for (from, to, phase) in &lane.stretches {
                let colour = phase.colour();
                let corners = [(*from, f64::from(top + 3)), (to.max(*from), f64::from(top + LANE - 3))];
                let style = if *phase == Phase::Void { colour.stroke_width(1) } else { colour.filled() };
                chart.draw_series([Rectangle::new(corners, style)])?;
            }
            let floor = f64::from(top + LANE + BUSY - 3);
            let busy = lane.busy.iter().filter(|(x, _)| (0.0..=end).contains(x));
            let line: Vec<(f64, f64)> =
                busy.map(|(x, y)| (*x, floor - y.clamp(0.0, 1.0) * f64::from(BUSY - 3))).collect();
            if let Some((first, last)) = line.first().zip(line.last()) {
                let ends = [(last.0, floor), (first.0, floor)];
                let area: Vec<_> = line.iter().copied().chain(ends).collect();
                chart.draw_series([Polygon::new(area, LIGHT.filled())])?;
            }
            top += height(lane);
        }
        Ok(())
    })
}

/// How wide the numbers beside an axis and its name are together.
fn beside((low, high): (f64, f64)) -> u32 {
    let digits = [low, high].map(|value| significant(value).chars().count()).into_iter().max();
    36 + 7 * u32::try_from(digits.unwrap_or(0)).unwrap_or(0).clamp(4, 10)
}

fn mesh(chart: &mut Chart<'_, '_>, x: &str, y: &str, x_labels: usize, y_labels: usize) -> Drawn {
    let style = TextStyle::from(("sans-serif", LETTERS)).color(&INK);
    let shown = |value: &f64| significant(if value.abs() < 1e-9 { 0.0 } else { *value });
    let whole = x == PLACES;
    let shown_x = |value: &f64| match whole && value.fract().abs() > 1e-9 {
        true => String::new(),
        false => shown(value),
    };
    let (x, y) = (shorten(&sanitize(x), LABEL).into_owned(), shorten(&sanitize(y), 24).into_owned());
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(AXIS)
        .label_style(style.clone())
        .axis_desc_style(style)
        .x_labels(x_labels)
        .y_labels(y_labels)
        .x_label_formatter(&shown_x)
        .y_label_formatter(&shown)
        .x_desc(x)
        .y_desc(y);
    if y_labels == 0 {
        mesh.disable_y_axis().disable_y_mesh();
    }
    Ok(mesh.draw()?)
}

fn point(chart: &mut Chart<'_, '_>, at: (f64, f64), series: usize) -> Drawn {
    let (mark, colour) = mark(series);
    let colour = SERIES[colour];
    match mark {
        "disc" => drop(chart.draw_series([Circle::new(at, 4, colour.filled())])?),
        "triangle" => drop(chart.draw_series([TriangleMarker::new(at, 5, colour.filled())])?),
        "cross" => drop(chart.draw_series([Cross::new(at, 4, colour.stroke_width(2))])?),
        _ => {
            let square = EmptyElement::at(at) + Rectangle::new([(-4, -4), (4, 4)], colour.filled());
            chart.draw_series([square])?;
        }
    }
    Ok(())
}

/// The least and the greatest of finite values, if there is one.
fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let values = values.iter().copied().filter(|value| value.is_finite() && value.abs() < 1e300);
    values.fold(None, |bounds, value| match bounds {
        None => Some((value, value)),
        Some((low, high)) => Some((value.min(low), value.max(high))),
    })
}

/// A little more than that on both sides, and never so little that a step along the axis would be lost in rounding.
fn padded((low, high): (f64, f64)) -> (f64, f64) {
    let largest = low.abs().max(high.abs());
    let room = if high > low { (high - low) * 0.06 } else { largest * 0.05 };
    let room = room.max(largest * 1e-9).max(1e-200);
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_any_size_are_drawn_and_the_drawing_ends() {
        let about = About { id: 1, title: "<a>", description: "b & c" };
        let next = f64::from_bits(1e9_f64.to_bits() + 1);
        for (low, high) in [
            (1e9, next),
            (0.0, 5e-324),
            (-1e299, 1e299),
            (3.0, 3.0),
            (0.0, 0.0),
            (f64::NAN, 1.0),
            (1.0, f64::INFINITY),
        ] {
            let drawn = order(
                about,
                &[(0, 1.0, low), (1, 2.0, high)],
                &[(0, 3.0, Lost::Void), (1, 4.0, Lost::Failed)],
                &[1.5],
                ("x", "y"),
            )
            .unwrap();
            assert!(
                drawn.contains("<title id=\"t1\">&lt;a&gt;</title><desc id=\"d1\">b &amp; c</desc>"),
                "{drawn}"
            );
            assert!(drawn.ends_with("</svg>\n"), "{low} {high}");
            let entry = |estimate, interval| Entry { series: 2, estimate, interval };
            let entries = vec![entry(low, Some((low, high))), entry(1.0, Some((-1e200, 1e200)))];
            let of = [Row { label: "size=1".to_owned(), entries }];
            let drawn = rows(about, &of, "axis", Some((-3.0, 3.0))).unwrap();
            // What is shaded begins below the label, with the line in its middle.
            let (_, band) = drawn
                .split_once("fill=\"#E6E9EE\"")
                .map(|(before, _)| before.rsplit_once("<rect").unwrap())
                .unwrap();
            let y: f64 = band.split_once(" y=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap();
            assert!(y >= 18.0, "{drawn}");
            lines(about, &[vec![(low, 1.0), (high, 2.0)]], ("x", "y")).unwrap();
        }
        assert!(order(about, &[], &[], &[], ("x", "y")).is_none() && rows(about, &[], "x", None).is_none());
        let lane = Lane {
            label: "n-0".to_owned(),
            stretches: vec![(0.0, 1e12, Phase::Up(StartPhase::Boot))],
            busy: vec![(-1.0, 0.5), (f64::NAN, 0.5), (1.0, f64::NAN), (2.0, 7.0), (1e13, 0.0)],
            critical: true,
        };
        timeline(about, &[lane], 1e12).unwrap();
    }
}
