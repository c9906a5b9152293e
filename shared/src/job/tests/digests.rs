//! What the job's digest depends on, and what not.

use super::{
    BASE, job, parsed,
    table::{cases, default_of},
};

#[test]
fn every_digested_key_changes_the_digest_and_no_other_does() {
    for case in cases() {
        // Without a required key there is no job to compare with: compare with one that lacks the whole table.
        let without = parsed(&case.job(None)).job.unwrap_or_else(|| job(BASE));
        let with = job(&case.job(Some(case.key.example)));
        assert_ne!(without, with, "{}: the example is the default", case.path);
        assert_eq!(without.digest() != with.digest(), case.key.digested, "{}", case.path);
    }
}

#[test]
fn spelled_out_defaults_do_not_change_the_digest() {
    let mut spelled = 0;
    for case in cases() {
        if let Some(default) = default_of(case.key) {
            assert_eq!(job(&case.job(Some(&default))).digest(), job(&case.job(None)).digest(), "{}", case.path);
            spelled += 1;
        }
    }
    assert!(spelled > 100, "{spelled}");
}

#[test]
fn order_and_comments_do_not_change_the_digest() {
    let other = r#"
# The same job, written the other way round.
[tasks.tone]
validation = "./tone-validation.parquet"   # tidied
train = ["../jobs/tone.parquet"]
[tasks]
spam = { validation = "spam-validation.parquet", train = 'spam.parquet' }
[base_model]
location = "/jobs//model/"
"#;
    assert_eq!(job(BASE).digest(), job(other).digest());
}

#[test]
fn lists_that_are_sets_have_no_order() {
    let with = |text: &str| job(&format!("{BASE}{text}")).digest();
    assert_eq!(
        with("skip_layers = [2, 0]\nadapter.leave_out = [1, 0]\n"),
        with("skip_layers = [0, 2]\nadapter.leave_out = [0, 1, 1]\n")
    );
    assert_eq!(
        with("adapter = { method = \"lora\", attn_matrices = [\"v\", \"q\"] }\n"),
        with("adapter = { method = \"lora\", attn_matrices = [\"q\", \"v\"] }\n")
    );
    let heads = ["[\"a\", \"b\"]", "[\"b\", \"a\"]"].map(|labels| with(&format!("head = {{ labels = {labels} }}\n")));
    assert_ne!(heads[0], heads[1], "labels are in the order of their ids");
}

#[test]
fn the_older_method_names_are_the_same_method() {
    let with = |method: &str| job(&format!("{BASE}adapter.method = \"{method}\"\n")).digest();
    for (old, new) in [
        ("pfeiffer", "seq_bn"),
        ("houlsby", "double_seq_bn"),
        ("parallel", "par_bn"),
        ("scaled_parallel", "scaled_par_bn"),
    ] {
        assert_eq!(with(old), with(new));
    }
}
