//! Temporary.
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let recipes = graftwork_dataset::import::Recipes::read(a[1].as_ref()).unwrap_or_else(|e| panic!("{e}"));
    for r in &recipes.recipes {
        let t = std::time::Instant::now();
        match graftwork_dataset::import::run_recipe(
            &recipes,
            &r.name,
            a[2].as_ref(),
            &std::path::Path::new(&a[3]).join(&r.name),
        ) {
            Ok(report) => {
                println!(
                    "{} {:.2}s unchanged {} records {} empty {} labels {} duplicates {}",
                    r.name,
                    t.elapsed().as_secs_f64(),
                    report.unchanged,
                    report.records,
                    report.dropped_empty,
                    report.dropped_labels,
                    report.duplicates
                );
                for (s, p) in &report.splits {
                    println!("   {s}: {} rows, {:.1} words, {:?} sum {:.1}", p.rows, p.mean_words(), p.by_label, p.sum);
                }
            }
            Err(e) => println!("{}: {e}", r.name),
        }
    }
}
