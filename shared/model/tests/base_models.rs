//! Base models in every form that is accepted, and the message for each way in which one can be unusable.
//!
//! `fixtures/make.py` says what the folders hold: the same weights with and without prefix, in one file, in shards of
//! half precision, and under the names of the first releases with one tensor transposed in memory.

#![expect(clippy::unwrap_used, reason = "a failed helper of a test is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use graftwork_model::{BaseModel, Dtype, Family, MappedWeights, TrunkDescription, safetensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A copy of a fixture that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {}", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

fn values(model: &BaseModel, weights: &MappedWeights, name: &str) -> Vec<f32> {
    weights.values(model.tensor(name).unwrap()).unwrap().values
}

fn refusal(folder: &Path) -> String {
    BaseModel::open_without_tokenizer(folder).unwrap_err().to_string()
}

#[test]
fn an_fp32_file_can_be_used_in_place() {
    let model = BaseModel::open_without_tokenizer(&fixture("bert")).unwrap();
    assert_eq!((model.description.family, model.description.layers), (Family::Bert, 2));
    assert_eq!(model.tensors().len(), 5 + 2 * 16 + 2);
    assert!(model.has_pooler());
    assert_eq!(model.tensors()[0].name, "embeddings.word_embeddings.weight");
    let weights = model.map().unwrap();
    for tensor in model.tensors() {
        assert!(tensor.usable_in_place(), "{}", tensor.name);
        let in_place = Dtype::F32.to_f32(weights.bytes(tensor)).unwrap();
        assert_eq!(in_place, weights.values(tensor).unwrap().values);
    }
    let file = safetensors::read_file(&fixture("bert/model.safetensors")).unwrap();
    let name = "encoder.layer.1.output.dense.weight";
    assert_eq!(file[&format!("bert.{name}")].values, values(&model, &weights, name));
}

#[test]
fn old_names_and_transposed_storage_give_the_same_weights() {
    let (new, old) = (fixture("bert"), fixture("first_release"));
    let new = BaseModel::open_without_tokenizer(&new).unwrap();
    let old = BaseModel::open_without_tokenizer(&old).unwrap();
    let (new_weights, old_weights) = (new.map().unwrap(), old.map().unwrap());
    assert!(!old.has_pooler());
    for tensor in old.tensors() {
        let transposed = tensor.name == "encoder.layer.0.intermediate.dense.weight";
        assert_eq!(tensor.usable_in_place(), !transposed, "{}", tensor.name);
        let old_values = old_weights.values(tensor).unwrap().values;
        assert_eq!(old_values, values(&new, &new_weights, &tensor.name), "{}", tensor.name);
    }
}

#[test]
fn shards_of_half_precision_are_converted() {
    let full = BaseModel::open_without_tokenizer(&fixture("bert")).unwrap();
    let shards = BaseModel::open_without_tokenizer(&fixture("sharded")).unwrap();
    assert_eq!((shards.weights.len(), shards.tensor("embeddings.LayerNorm.bias").unwrap().dtype), (2, Dtype::F16));
    let (full_weights, shard_weights) = (full.map().unwrap(), shards.map().unwrap());
    for tensor in shards.tensors() {
        assert!(!tensor.usable_in_place());
        // Half of the last place: 2^-11 relative for fp16, 2^-8 for bf16.
        let bound = if tensor.dtype == Dtype::F16 { 2.0_f32.powi(-11) } else { 2.0_f32.powi(-8) };
        let rounded = shard_weights.values(tensor).unwrap().values;
        let exact = values(&full, &full_weights, &tensor.name);
        for (rounded, exact) in rounded.iter().zip(&exact) {
            assert!((rounded - exact).abs() <= bound * exact.abs() + 1e-7, "{}: {rounded} {exact}", tensor.name);
        }
    }
}

#[test]
fn positions_of_roberta_start_behind_the_padding_id() {
    let model = BaseModel::open_without_tokenizer(&fixture("roberta")).unwrap();
    let description = &model.description;
    assert_eq!((description.family, description.prefix), (Family::Roberta, "roberta"));
    assert_eq!((description.first_position(), description.max_tokens(), description.max_positions), (2, 8, 10));
    assert!(model.tensors().iter().all(graftwork_model::TrunkTensor::usable_in_place));
}

#[test]
fn the_digest_covers_configuration_weights_and_tokenizer() {
    let folder = copy("bert");
    let tokenizer = folder.path().join("tokenizer.json");
    let help = BaseModel::open(folder.path()).unwrap_err().to_string();
    assert!(help.contains("has no tokenizer.json; write it with"), "{help}");
    fs::write(&tokenizer, "{}").unwrap();
    let digest = || BaseModel::open(folder.path()).unwrap().digest().unwrap();
    let first = digest();
    assert_eq!(first, digest());
    fs::write(&tokenizer, "{ }").unwrap();
    let second = digest();
    assert_ne!(first, second);
    edit(&folder.path().join("config.json"), "\"use_cache\": true", "\"use_cache\": false");
    assert_ne!(second, digest());
    // A file that is not part of the model changes nothing.
    let third = digest();
    fs::write(folder.path().join("README.md"), "x").unwrap();
    assert_eq!(third, digest());
}

#[test]
fn configurations_are_refused_by_key_and_value() {
    let cases = [
        (
            "\"model_type\": \"bert\"",
            "\"model_type\": \"gpt2\"",
            "\"model_type\" is \"gpt2\"; supported architectures are",
        ),
        ("\"model_type\": \"bert\"", "\"x\": 1", "has no \"model_type\""),
        ("\"hidden_size\"", "\"hidden_sizes\"", "has no \"hidden_size\""),
        ("\"hidden_size\": 8", "\"hidden_size\": 0", "\"hidden_size\" is 0; a whole number from 1"),
        ("\"hidden_size\": 8", "\"hidden_size\": 9", "\"num_attention_heads\" is 2; it must divide hidden_size 9"),
        ("\"absolute\"", "\"relative_key\"", "\"position_embedding_type\" is \"relative_key\"; only \"absolute\""),
        ("\"use_cache\": true", "\"is_decoder\": true", "\"is_decoder\" is true; only encoders"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"", "\"hidden_act\" is \"mish\"; implemented are"),
        ("\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": -1", "\"layer_norm_eps\" is -1; a number from 0"),
        ("\"pad_token_id\": 0", "\"pad_token_id\": 12", "it must be below vocab_size 12"),
        ("{", "[", "is not valid JSON"),
    ];
    for (from, to, expected) in cases {
        let folder = copy("bert");
        edit(&folder.path().join("config.json"), from, to);
        let message = refusal(folder.path());
        assert!(message.contains(expected), "{message}");
        assert!(message.contains("config.json"), "{message}");
    }
    let nowhere = TrunkDescription::read(Path::new("/nowhere")).unwrap_err().to_string();
    assert!(nowhere.starts_with("/nowhere has no config.json; a base model is"), "{nowhere}");
}

#[test]
fn weights_must_belong_to_the_configuration() {
    let folder = copy("bert");
    edit(&folder.path().join("config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let message = refusal(folder.path());
    assert!(message.contains("no tensor \"encoder.layer.2.attention.self.query.weight\" of shape [8, 8]"), "{message}");

    let folder = copy("bert");
    edit(&folder.path().join("config.json"), "\"vocab_size\": 12", "\"vocab_size\": 13");
    let message = refusal(folder.path());
    let expected = "\"bert.embeddings.word_embeddings.weight\" has shape [12, 8], the configuration asks for [13, 8]";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn truncated_weights_are_reported_with_their_bytes() {
    let folder = copy("bert");
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    for (length, expected) in [
        (0, "truncated: the header's length needs 8 bytes, there are 0"),
        (100, "bytes, there are 100"),
        (bytes.len() - 1, &format!("needs {} bytes, there are {}", bytes.len(), bytes.len() - 1)),
    ] {
        fs::write(&file, &bytes[..length]).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(expected) && message.contains("model.safetensors: truncated"), "{message}");
    }
    fs::write(&file, [bytes.as_slice(), b"xyz"].concat()).unwrap();
    assert!(refusal(folder.path()).contains("3 bytes follow the last tensor"));
    fs::remove_file(&file).unwrap();
    assert!(
        refusal(folder.path())
            .contains("has no weights (model.safetensors, model.safetensors.index.json or pytorch_model.bin)")
    );
}

#[test]
fn a_torch_file_cut_short_is_refused() {
    let folder = copy("first_release");
    let file = folder.path().join("pytorch_model.bin");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("pytorch_model.bin: not a readable torch file"), "{message}");
}

#[test]
fn an_index_names_plain_files_that_exist() {
    let folder = copy("sharded");
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let message = refusal(folder.path());
    assert!(message.contains("has no model-00002-of-00002.safetensors; the index names it"), "{message}");
    let index = folder.path().join("model.safetensors.index.json");
    edit(&index, "model-00001-of-00002", "../model-00001-of-00002");
    let message = refusal(folder.path());
    assert!(message.contains("a shard is a file name without folders"), "{message}");
    fs::write(&index, "{}").unwrap();
    assert!(refusal(folder.path()).contains("has no \"weight_map\""));
}
