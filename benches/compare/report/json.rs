//! All samples and what follows from them, for other programs.

use serde_json::{Value, json};

use super::{Results, Spread};
use crate::Result;
use crate::marks::{self, Limit};
use crate::work::Unit;

/// The whole run as JSON.
pub fn render(results: &Results) -> Result<String> {
    let contenders: Vec<Value> = results
        .contenders
        .iter()
        .map(|contender| {
            let mean = results.mean(&contender.name);
            json!({
                "name": contender.name,
                "version": contender.version,
                "geometric_mean": mean.map(|(mean, _)| mean),
                "rows_in_mean": mean.map(|(_, rows)| rows),
                "growth_128_layers_cold": results.growth(&contender.name, "cold"),
                "growth_128_layers_warm": results.growth(&contender.name, "warm"),
            })
        })
        .collect();
    let rows: Vec<Value> = results.rows().map(|row| row_value(results, row)).collect();
    let failures: Vec<Value> = results
        .failures()
        .map(|(work, contender, reason)| json!({ "work": work, "contender": contender, "reason": reason }))
        .collect();
    let machine: serde_json::Map<String, Value> =
        results.machine.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let whole = json!({
        "machine": machine,
        "contenders": contenders,
        "rows": rows,
        "failures": failures,
        "notes": results.notes,
    });
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

fn row_value(results: &Results, row: &crate::work::Row) -> Value {
    let mark = marks::of(row.id);
    let of_contender = |name: &str| {
        json!({
            "samples": results.samples(row.id, name).iter().map(|(_, value)| value).collect::<Vec<_>>(),
            "value": results.value(row.id, name).map(spread),
            "ratio": results.ratio(row, name).map(spread),
            "meets_mark": results.meets(row, name),
        })
    };
    let all: serde_json::Map<String, Value> =
        results.contenders.iter().map(|contender| (contender.name.clone(), of_contender(&contender.name))).collect();
    json!({
        "id": row.id,
        "title": row.title.trim(),
        "unit": match row.unit { Unit::Total => "seconds", Unit::Each => "seconds per operation", Unit::Bytes => "bytes" },
        "mark": mark.map(|mark| match mark.limit { Limit::Ratio(limit) | Limit::Bytes(limit) => limit }),
        "fuse_overlayfs_2_when_the_mark_was_set": mark.and_then(|mark| mark.rival),
        "contenders": all,
    })
}

fn spread(spread: Spread) -> Value {
    json!({ "median": spread.median, "least": spread.least, "most": spread.most })
}
