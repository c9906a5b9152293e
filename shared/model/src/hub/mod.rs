//! AdapterHub's folders: what the Python library `adapters` saves and loads.
//!
//! Each kind of folder is a value ([`AdapterFolder`], [`FusionFolder`], [`HeadFolder`], [`SetupFolder`]) with two
//! doors: `read` from a folder on disk, or `parse` from files in memory; and `files`, which gives the folder's files as
//! bytes so that a caller can publish them atomically. Readers take folders with `.safetensors` or `.bin` alone (and
//! prefer the first); writers always write both, since the peer reads `.bin` unless told otherwise.
//!
//! Tensors are fp32 under their full state-dict names, with the base prefix. Equal values give equal bytes.

mod config;
mod folder;
mod head;
mod options;
mod setup;
mod source;

use serde_json::{Map, Value, json};

pub use folder::{AdapterFolder, FusionFolder};
pub use head::HeadFolder;
pub use setup::{SetupFolder, write_folder};

use crate::{error::ModelError, trunk::TrunkDescription};
use options::Options;

/// Files of a folder: path relative to the folder, with `/` between parts, and bytes.
pub type Files = Vec<(String, Vec<u8>)>;

/// Version of the format that is written: the library's release whose files are equal.
pub const FORMAT_VERSION: &str = "adapters.1.3.0";

/// The base model that an adapter, a head or a fusion belongs to, as its configuration file says.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelReference {
    /// Width of the hidden states.
    pub hidden_size: u32,
    /// The Python class, such as `BertAdapterModel`.
    pub model_class: String,
    /// Hub name or path of the base model.
    pub model_name: Option<String>,
    /// `bert` or `roberta`.
    pub model_type: String,
    /// The library and release that wrote the files; `None` for files older than the key.
    pub version: Option<String>,
}

impl ModelReference {
    /// The reference that this program writes for adapters of `trunk`, published under `model_name`.
    pub fn of(trunk: &TrunkDescription, model_name: &str) -> Self {
        Self {
            hidden_size: trunk.hidden_size,
            model_class: trunk.model_class.to_owned(),
            model_name: Some(model_name.to_owned()),
            model_type: trunk.model_type.to_owned(),
            version: Some(FORMAT_VERSION.to_owned()),
        }
    }

    /// Checks that what is stored belongs to a trunk of this type and width.
    pub(crate) fn check(&self, trunk: &TrunkDescription, file: &str) -> Result<(), ModelError> {
        let wrong = |key: &str, found: String, wanted: String| {
            let allowed = format!("the base model's is {wanted}; choose the base model that it was trained on");
            Err(ModelError::Value { file: file.to_owned(), key: key.to_owned(), found, allowed })
        };
        if self.model_type != trunk.model_type {
            return wrong("model_type", format!("\"{}\"", self.model_type), format!("\"{}\"", trunk.model_type));
        }
        if self.hidden_size != trunk.hidden_size {
            return wrong("hidden_size", self.hidden_size.to_string(), trunk.hidden_size.to_string());
        }
        Ok(())
    }

    fn parse(options: &Options) -> Result<Self, ModelError> {
        let text = |key: &str| options.get(key).and_then(Value::as_str).map(str::to_owned);
        let model_type = text("model_type").unwrap_or_default();
        if model_type != "bert" && model_type != "roberta" {
            return Err(options.wrong("model_type", "supported are \"bert\" and \"roberta\""));
        }
        Ok(Self {
            hidden_size: options.size("hidden_size", None)?,
            model_class: text("model_class").unwrap_or_default(),
            model_name: text("model_name"),
            model_type,
            version: text("version"),
        })
    }

    /// The envelope around a configuration, with the version of the format that is written now.
    fn envelope(&self, name: &str, config: &Value) -> Map<String, Value> {
        let Value::Object(map) = json!({
            "config": config,
            "hidden_size": self.hidden_size,
            "model_class": self.model_class,
            "model_name": self.model_name,
            "model_type": self.model_type,
            "name": name,
            "version": FORMAT_VERSION,
        }) else {
            unreachable!("the literal is an object")
        };
        map
    }

    /// The prefix of tensor names in models with heads.
    fn prefix(&self) -> &str {
        &self.model_type
    }
}
