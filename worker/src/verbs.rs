//! The options of each verb as JSON: `graftwork completions` asks for them, since users type these verbs there.

use clap::CommandFactory as _;
use serde_json::{Value, json};

use crate::command::Arguments;

/// Prints an object: by verb, a list of options with `long`, `short`, `help`, `takes_value` and `values`.
pub(crate) fn print() {
    println!("{}", verbs());
}

fn verbs() -> Value {
    let mut command = Arguments::command();
    command.build();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    let options = |verb: &clap::Command| verb.get_arguments().filter_map(option).collect::<Vec<Value>>();
    verbs.map(|verb| (verb.get_name().to_owned(), options(verb))).collect()
}

/// An option; what is told by its position has no name to complete.
fn option(argument: &clap::Arg) -> Option<Value> {
    let long = argument.get_long()?;
    let values = argument.get_possible_values();
    Some(json!({
        "long": long,
        "short": argument.get_short(),
        "help": argument.get_help().map(ToString::to_string),
        "takes_value": argument.get_action().takes_values(),
        "values": values.iter().filter(|value| !value.is_hide_set()).map(clap::builder::PossibleValue::get_name).collect::<Vec<_>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_tell_their_options_and_the_values_of_these() {
        let verbs = verbs();
        let option = |verb: &str, long: &str| {
            let options = verbs[verb].as_array().unwrap();
            options.iter().find(|option| option["long"] == long).cloned().unwrap_or_default()
        };
        assert_eq!(option("worker", "device")["values"], json!(["cpu", "cuda"]));
        assert_eq!(option("predict", "precision")["values"], json!(["fp32", "bf16", "fp16"]));
        assert_eq!(option("worker", "persist")["takes_value"], json!(false));
        assert_eq!(option("predict", "text")["takes_value"], json!(true));
        assert!(verbs.get("verbs").is_none(), "{verbs}");
    }
}
