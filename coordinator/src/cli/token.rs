//! `graftwork token`: tokens with roles. The token is printed once; the file keeps its digest.

use std::path::PathBuf;

use super::{DONE, Failure, print};
use crate::server::{NewToken, Role};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The coordinator's file of tokens, made if missing. Only digests of tokens stand in it; whoever deletes an entry
    /// and starts the coordinator again takes that token back.
    file: PathBuf,
    /// A name for the token, for messages and for whoever looks after the file.
    name: String,
    /// What it is for.
    #[arg(long, value_enum)]
    role: Role,
    /// Whose jobs it submits; the token's name by default.
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// The highest priority that its jobs may have; without it 0, and any for the role admin.
    #[arg(long, value_name = "PRIORITY", allow_negative_numbers = true)]
    most_priority: Option<i32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let Arguments { file, name, role, owner, most_priority } = arguments;
    if name.trim().is_empty() {
        return Err(Failure::input(anyhow::anyhow!("the token's name is empty: give one that says whose it is")));
    }
    let owner = match role {
        Role::Submit | Role::Admin => Some(owner.as_ref().unwrap_or(name).as_str()),
        Role::Join | Role::Read if owner.is_some() => {
            let role = role.name();
            return Err(Failure::input(anyhow::anyhow!(
                "a token of the role {role} submits nothing: leave out --owner"
            )));
        }
        Role::Join | Role::Read => None,
    };
    let token =
        NewToken { name, role: *role, owner, most_priority: *most_priority }.make(file).map_err(Failure::input)?;
    print(&format!("{token}\n"));
    eprintln!(
        "the token is shown this once: put it into the environment variable GRAFTWORK_TOKEN where it is used, and start \
         the coordinator again with `--tokens {}`",
        file.display()
    );
    Ok(DONE)
}
