//! Setup folders: `adapter_setup.json` with a composition, and one sub-folder for each adapter, fusion and further head.
//!
//! The peer finds a fusion's folder by its adapters' names joined by commas and does not store another name, so a
//! fusion with a name of its own is stored under the joined names here too.

use std::path::Path;

use graftwork_shared::composition::Composition;
use serde_json::{Map, Value, json};

use super::{
    AdapterFolder, FORMAT_VERSION, Files, FusionFolder, HeadFolder,
    options::{Options, shorten},
    source::Source,
};
use crate::{
    error::ModelError,
    python_json::{self, Keys},
    rename::rename,
};

const SETUP: &str = "adapter_setup.json";

/// The deepest nesting that is read; the table of legal nestings needs less in practice.
const DEEPEST: usize = 32;

/// A composition with everything that it names.
#[derive(Clone, Debug, PartialEq)]
pub struct SetupFolder {
    /// How the adapters are combined.
    pub composition: Composition,
    /// Every adapter of the composition, once.
    pub adapters: Vec<AdapterFolder>,
    /// Every fusion of the composition.
    pub fusions: Vec<FusionFolder>,
    /// Heads that lie in folders of their own; the setup file names them.
    pub heads: Vec<HeadFolder>,
}

impl SetupFolder {
    /// Reads a folder that holds a setup.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::load(Source::Folder(folder), &|name, read| read(Source::Folder(&folder.join(name))))
    }

    /// Reads a setup from files in memory.
    pub fn parse(files: &[(String, Vec<u8>)]) -> Result<Self, ModelError> {
        Self::load(Source::Memory(files, ""), &|name, read| read(Source::Memory(files, name)))
    }

    fn load(top: Source, enter: &Enter) -> Result<Self, ModelError> {
        let value = top.needed_json(SETUP, "this folder does not hold a setup")?;
        let file = top.label(SETUP);
        let options = Options::of(&value, &file)?;
        let setup =
            options.get("adapter_setup").ok_or_else(|| options.missing("adapter_setup", "it holds the composition"))?;
        let composition = parse_block(setup, &file, 0)?;
        composition.check()?;
        let mut folder = Self { composition, adapters: Vec::new(), fusions: Vec::new(), heads: Vec::new() };
        for name in distinct(folder.composition.adapters().iter().map(|name| name.as_str().to_owned())) {
            enter(&name, &mut |source| {
                folder.adapters.push(AdapterFolder::load(source)?);
                Ok(())
            })?;
        }
        for name in fusion_names(&folder.composition) {
            enter(&name, &mut |source| {
                folder.fusions.push(FusionFolder::load(source)?);
                Ok(())
            })?;
        }
        for name in head_names(&options)? {
            let carried = folder.adapters.iter().filter_map(|adapter| adapter.head.as_ref());
            let carried = carried.chain(folder.fusions.iter().filter_map(|fusion| fusion.head.as_ref()));
            if carried.into_iter().any(|head| head.name == name) {
                continue;
            }
            enter(&name, &mut |source| {
                folder.heads.push(HeadFolder::needed(source)?);
                Ok(())
            })?;
        }
        Ok(folder)
    }

    /// All files of the folder and its sub-folders.
    ///
    /// # Errors
    /// When the composition is not legal or names what is not given, or two different files would have one path.
    pub fn files(&self) -> Result<Files, ModelError> {
        self.composition.check()?;
        let mut heads: Vec<&str> = self.heads.iter().map(|head| head.name.as_str()).collect();
        heads.extend(self.fusions.iter().filter_map(|fusion| Some(fusion.head.as_ref()?.name.as_str())));
        let head_setup = match heads.as_slice() {
            [] => Value::Null,
            [name] => json!(name),
            names => json!(names),
        };
        let setup = json!({
            "adapter_setup": write_top(&self.composition)?,
            "head_setup": head_setup,
            "version": FORMAT_VERSION,
        });
        let mut files = vec![(SETUP.to_owned(), python_json::to_bytes(&setup, Keys::AsGiven))];
        for name in distinct(self.composition.adapters().iter().map(|name| name.as_str().to_owned())) {
            let adapter = self.adapters.iter().find(|adapter| adapter.name == name);
            let adapter =
                adapter.ok_or_else(|| ModelError::Options(format!("the setup lacks its adapter \"{name}\"")))?;
            add(&mut files, &name, adapter.files()?)?;
        }
        for (fusion, joined) in self.named_fusions()? {
            if let Some(head) = &fusion.head {
                add(&mut files, &head.name, head.files()?)?;
            }
            add(&mut files, &joined, fusion.files()?)?;
        }
        for head in &self.heads {
            add(&mut files, &head.name, head.files()?)?;
        }
        Ok(files)
    }

    /// Each fusion of the composition under the joined names of its adapters, and these.
    fn named_fusions(&self) -> Result<Vec<(FusionFolder, String)>, ModelError> {
        let mut named = Vec::new();
        for block in fusion_blocks(&self.composition) {
            let name = block.fusion_name().expect("the block is a fusion");
            let joined = joined_name(block);
            let given = self.fusions.iter().find(|fusion| fusion.name == name || fusion.name == joined);
            let given = given.ok_or_else(|| ModelError::Options(format!("the setup lacks its fusion \"{name}\"")))?;
            let tensors = rename(given.tensors.clone(), &given.name, &joined);
            named.push((FusionFolder { name: joined.clone(), tensors, ..given.clone() }, joined));
        }
        Ok(named)
    }
}

/// Opens a sub-folder for one reader.
type Enter<'a> = dyn Fn(&str, &mut dyn FnMut(Source) -> Result<(), ModelError>) -> Result<(), ModelError> + 'a;

fn add(files: &mut Files, folder: &str, more: Files) -> Result<(), ModelError> {
    for (name, bytes) in more {
        let path = format!("{folder}/{name}");
        match files.iter().find(|(taken, _)| *taken == path) {
            None => files.push((path, bytes)),
            Some((_, same)) if *same == bytes => {}
            Some(_) => {
                let problem = format!("two different heads would be stored as {path}; give them different names");
                return Err(ModelError::Options(problem));
            }
        }
    }
    Ok(())
}

/// Writes files into a new or empty folder, without durability or atomicity: for local tools. What is published goes
/// through the store.
pub fn write_folder(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<(), ModelError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(ModelError::io(parent))?;
        std::fs::write(&path, bytes).map_err(ModelError::io(&path))?;
    }
    Ok(())
}

fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

fn fusion_blocks(block: &Composition) -> Vec<&Composition> {
    let own = matches!(block, Composition::Fuse { .. }).then_some(block);
    own.into_iter().chain(block.children().iter().flat_map(fusion_blocks)).collect()
}

/// The last adapters of a fusion's children, joined by commas.
fn joined_name(fusion: &Composition) -> String {
    let last = fusion.children().iter().filter_map(|child| child.adapters().last().map(ToString::to_string));
    last.collect::<Vec<_>>().join(",")
}

fn fusion_names(block: &Composition) -> Vec<String> {
    distinct(fusion_blocks(block).into_iter().map(joined_name))
}

/// Heads that `head_setup` names: one, a list, or a composition.
fn head_names(options: &Options) -> Result<Vec<String>, ModelError> {
    fn collect(value: &Value, names: &mut Vec<String>, depth: usize) -> Option<()> {
        match value {
            Value::String(name) => names.push(name.clone()),
            Value::Array(items) if depth < DEEPEST => {
                items.iter().try_for_each(|item| collect(item, names, depth + 1))?;
            }
            Value::Object(map) if depth < DEEPEST => collect(map.get("children")?, names, depth + 1)?,
            _ => return None,
        }
        Some(())
    }
    let mut names = Vec::new();
    if let Some(value) = options.get("head_setup").filter(|value| **value != false) {
        let legal = collect(value, &mut names, 0).is_some() && names.iter().all(|name| is_plain(name));
        if !legal {
            return Err(
                options.wrong("head_setup", "a head's name, a list of names or a composition of names is needed")
            );
        }
    }
    Ok(distinct(names.into_iter()))
}

/// Names become paths; none may leave the folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

fn parse_block(value: &Value, file: &str, depth: usize) -> Result<Composition, ModelError> {
    let options = Options::of(value, file)?;
    let kind = options.text("type")?;
    let children = options.get("children").and_then(Value::as_array);
    let children = children.ok_or_else(|| options.wrong("children", "a list is needed"))?;
    if depth >= DEEPEST {
        return Err(options.wrong("type", "blocks nest too deep"));
    }
    if kind == "single" {
        let [Value::String(name)] = children.as_slice() else {
            return Err(options.wrong("children", "a single adapter has one name"));
        };
        let adapter = name.parse().map_err(|error| options.wrong("children", &format!("{error}")))?;
        return Ok(Composition::Single { adapter });
    }
    let children = children.iter().map(|child| parse_block(child, file, depth + 1)).collect::<Result<Vec<_>, _>>()?;
    let empty = Map::new();
    let kwargs = options.get("kwargs").and_then(Value::as_object).unwrap_or(&empty);
    let kwargs = Options { map: kwargs, file };
    Ok(match kind {
        "Stack" => Composition::Stack { children },
        "Fuse" => Composition::Fuse { children, name: None },
        "Parallel" => Composition::Parallel { children },
        "Average" => {
            let weights = kwargs.typed("weights", None, "a list of numbers is needed")?;
            Composition::Average { children, weights, normalize: true }
        }
        "Split" => {
            Composition::Split { children, splits: kwargs.typed("splits", None, "a list of token counts is needed")? }
        }
        "BatchSplit" => {
            let batch_sizes = kwargs.typed("batch_sizes", None, "a list of row counts is needed")?;
            Composition::BatchSplit { children, batch_sizes }
        }
        _ => {
            let allowed = "implemented are single, Stack, Fuse, Parallel, Average, Split and BatchSplit";
            return Err(options.wrong("type", allowed));
        }
    })
}

/// The outermost block; the peer makes a stack of a single adapter.
fn write_top(composition: &Composition) -> Result<Value, ModelError> {
    match composition {
        Composition::Single { .. } => Ok(json!({"type": "Stack", "children": [write_block(composition)?]})),
        block => write_block(block),
    }
}

fn write_block(block: &Composition) -> Result<Value, ModelError> {
    let (kind, kwargs) = match block {
        Composition::Single { adapter } => return Ok(json!({"type": "single", "children": [adapter]})),
        Composition::Stack { .. } => ("Stack", None),
        Composition::Fuse { .. } => ("Fuse", None),
        Composition::Parallel { .. } => ("Parallel", None),
        Composition::Average { weights, normalize, .. } => {
            ("Average", Some(json!({"weights": average(weights, *normalize)?})))
        }
        Composition::Split { splits, .. } => ("Split", Some(json!({"splits": splits}))),
        Composition::BatchSplit { batch_sizes, .. } => ("BatchSplit", Some(json!({"batch_sizes": batch_sizes}))),
    };
    let children = block.children().iter().map(write_block).collect::<Result<Vec<_>, _>>()?;
    let mut map = Map::new();
    map.insert("type".to_owned(), json!(kind));
    map.insert("children".to_owned(), Value::Array(children));
    if let Some(kwargs) = kwargs {
        map.insert("kwargs".to_owned(), kwargs);
    }
    Ok(Value::Object(map))
}

/// Weights as the peer keeps them: divided by their sum, since it divides again when it loads them.
fn average(weights: &[f64], normalize: bool) -> Result<Vec<f64>, ModelError> {
    let sum: f64 = weights.iter().sum();
    if normalize {
        return Ok(weights.iter().map(|weight| weight / sum).collect());
    }
    if (sum - 1.0).abs() > 1e-9 {
        let list = shorten(&format!("{weights:?}"));
        let problem = format!(
            "weights {list} sum to {sum}; AdapterHub stores weights that sum to 1 only, scale the adapters instead"
        );
        return Err(ModelError::Options(problem));
    }
    Ok(weights.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: &[u8] = include_bytes!("../../fixtures/blocks.json");

    fn single(name: &str) -> Composition {
        Composition::single(name.parse().unwrap())
    }

    #[test]
    fn every_block_is_read_and_written_as_the_peer_writes_it() {
        let mut value: Value = serde_json::from_slice(BLOCKS).unwrap();
        let options = Options::of(&value, "blocks.json").unwrap();
        assert_eq!(head_names(&options).unwrap(), ["a", "both"]);
        let composition = parse_block(&value["adapter_setup"], "blocks.json", 0).unwrap();
        assert_eq!(composition.check(), Ok(()));
        assert_eq!(composition.to_string(), "Stack[a, Average[b, b2], BatchSplit[a, Split[b, b2]]]");
        value["adapter_setup"] = write_top(&composition).unwrap();
        assert_eq!(python_json::to_bytes(&value, Keys::AsGiven), BLOCKS);
    }

    #[test]
    fn a_single_adapter_is_stored_as_a_stack() {
        let written = write_top(&single("a")).unwrap();
        assert_eq!(parse_block(&written, "x", 0).unwrap(), Composition::Stack { children: vec![single("a")] });
    }

    #[test]
    fn weights_that_would_be_scaled_on_loading_are_refused() {
        let average = |normalize| Composition::Average { children: vec![single("a")], weights: vec![2.0], normalize };
        assert_eq!(write_block(&average(true)).unwrap()["kwargs"]["weights"], json!([1.0]));
        assert!(write_block(&average(false)).unwrap_err().to_string().contains("sum to 2; AdapterHub stores"));
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["../x", "/x", "..", ""] {
            let value = json!({"head_setup": name});
            assert!(head_names(&Options::of(&value, "x").unwrap()).is_err(), "{name}");
            let single = json!({"type": "single", "children": [name]});
            assert!(parse_block(&single, "x", 0).unwrap_err().to_string().contains("is not a name"), "{name}");
        }
    }

    #[test]
    fn blocks_that_are_not_known_are_refused() {
        for (value, expected) in [
            (json!({"type": "MultiTask", "children": []}), "\"type\" is \"MultiTask\"; implemented are"),
            (json!({"type": "Split", "children": []}), "\"splits\" is absent; a list of token counts"),
            (json!({"type": "Stack"}), "\"children\" is absent"),
            (json!({"type": "single", "children": ["a", "b"]}), "a single adapter has one name"),
        ] {
            let message = parse_block(&value, "x", 0).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
