//! Charts over layers, as SVG text; no fonts of the system are read.

use anyhow::anyhow;
use flm_growth::{Distances, Metric};
use plotters::prelude::*;

/// How the vertical axis is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

/// A line's name and its points.
pub(crate) type Series<'a> = (&'a str, Vec<(f64, f64)>);

const COLOURS: [RGBColor; 3] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44)];

/// The smallest value that a logarithmic axis shows: zeros are drawn there.
const FLOOR: f64 = 1e-18;

/// The distances over depth.
pub(crate) fn distances(distances: &Distances) -> anyhow::Result<String> {
    let series = |metric| distances.layers.iter().map(|l| (l.layer as f64, l.by(metric))).collect();
    layer_chart(
        "Distance between a layer's input and output",
        "distance",
        Scale::Linear,
        &[
            ("angular", series(Metric::Angular)),
            ("1 − cosine", series(Metric::Cosine)),
            ("relative", series(Metric::Relative)),
        ],
    )
}

/// A chart of `series` over the number of the layer.
pub(crate) fn layer_chart(
    title: &str,
    unit: &str,
    scale: Scale,
    series: &[Series<'_>],
) -> anyhow::Result<String> {
    let points = || series.iter().flat_map(|(_, points)| points).filter(|(_, y)| y.is_finite());
    let right = points().map(|p| p.0).fold(1.0, f64::max);
    let top = points().map(|p| p.1).fold(0.0, f64::max);
    let mut svg = String::new();
    let drawn = match scale {
        Scale::Linear => {
            let top = if top > 0.0 { top * 1.05 } else { 1.0 };
            draw(&mut svg, title, unit, right, 0.0..top, series, |y| y)
        }
        Scale::Logarithmic => {
            let low = points().map(|p| p.1.max(FLOOR)).fold(f64::INFINITY, f64::min);
            let low = if low.is_finite() { low / 2.0 } else { FLOOR };
            let high = (top * 2.0).max(low * 10.0);
            draw(&mut svg, title, unit, right, (low..high).log_scale(), series, |y| y.max(FLOOR))
        }
    };
    drawn.map_err(|error| anyhow!("cannot draw the picture: {error}"))?;
    Ok(svg)
}

fn draw<Y>(
    svg: &mut String,
    title: &str,
    unit: &str,
    right: f64,
    y: Y,
    series: &[Series<'_>],
    shown: impl Fn(f64) -> f64,
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
{
    let root = SVGBackend::with_string(svg, (860, 380)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, y)?;
    chart
        .configure_mesh()
        .x_desc("layer")
        .y_desc(unit)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if *y == 0.0 || *y >= 0.01 { format!("{y:.2}") } else { format!("{y:.0e}") })
        .draw()?;
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line = points.iter().filter(|(_, y)| y.is_finite()).map(|&(x, y)| (x, shown(y)));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_is_self_contained_and_names_its_lines() {
        let layer = |(layer, angular): (usize, f64)| serde_json::json!({ "layer": layer, "angular": angular, "cosine": 2.0 * angular, "relative": -angular });
        let layers: Vec<_> = [0.1, 0.4, 0.2].into_iter().enumerate().map(layer).collect();
        let measured = serde_json::json!({ "version": 1, "dtype": "f32", "tokens": 1, "layers": layers });
        let svg = distances(&serde_json::from_value(measured).unwrap()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("angular") && svg.contains("<polyline") && !svg.contains("href"));
    }
}
