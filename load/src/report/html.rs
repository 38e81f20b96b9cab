//! The report as one page that opens without a network: `page.html` with the report's JSON in it.
//!
//! The page draws its charts itself. Percentiles beyond those that the JSON lists are written out of the histograms here,
//! because the page does not read HDR.

use serde_json::{Value, json};

use super::model::Report;

const PAGE: &str = include_str!("page.html");
const PLACE: &str = "/*REPORT*/null";
/// Points of the curve of percentiles for each half of what is left.
const TICKS: u32 = 5;

/// The page.
///
/// # Errors
/// When the report's histograms cannot be read.
pub(crate) fn page(report: &Report) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(report)?;
    let mut curves = serde_json::Map::new();
    for (metric, latency) in &report.latencies {
        let histogram = latency.decode()?;
        let points: Vec<Value> = histogram
            .iter_quantiles(TICKS)
            .map(|point| json!([point.quantile_iterated_to(), point.value_iterated_to()]))
            .collect();
        curves.insert(metric.clone(), points.into());
    }
    strip(&mut value);
    value["curves"] = curves.into();
    // No text of the report can end the script that it stands in.
    let text = value.to_string().replace("</", "<\\/").replace("<!--", "<\\!--");
    Ok(PAGE.replacen(PLACE, &text, 1))
}

/// The page does without the histograms' bytes.
fn strip(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("hdr");
            object.values_mut().for_each(strip);
        }
        Value::Array(array) => array.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::example;
    use super::*;

    #[test]
    fn the_page_needs_nothing_else_and_cannot_be_broken_out_of() {
        let mut report = example();
        report.name = Some("</script><b>bold</b>".to_owned());
        let page = page(&report).unwrap();
        assert!(page.contains("<\\/script>") && !page.contains("</script><b>"));
        assert!(page.contains("\"curves\":{\"ack\":[["));
        for outside in ["http://", "https://", "@import", "<link", "src="] {
            let found = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!found.contains(outside), "the page has {outside}");
        }
    }
}
