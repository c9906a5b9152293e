//! AdapterHub's folders, read from what the Python library wrote and written with the same bytes.

#![expect(clippy::unwrap_used, reason = "a failed helper of a test is a failed test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use graftwork_model::{
    HostTensor, TrunkDescription,
    hub::{AdapterFolder, Files, FusionFolder, HeadFolder, SetupFolder, write_folder},
    rename, safetensors, torch_file,
};
use graftwork_shared::{
    adapter::{AdapterConfig, NonLinearity, ReductionFactor, Scaling, TrainedScaling},
    composition::Composition,
    head::HeadOutput,
};

const ADAPTERS: [&str; 6] = [
    "bert_double_seq_bn",
    "bert_scaled_par_bn",
    "bert_norms_and_gate",
    "bert_reduction_map",
    "bert_lora",
    "roberta_double_seq_bn",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn adapter(case: &str) -> AdapterFolder {
    AdapterFolder::read(&fixture("adapters").join(case)).unwrap()
}

fn trunk(case: &str) -> TrunkDescription {
    let family = if case.starts_with("roberta") { "roberta" } else { "bert" };
    TrunkDescription::read(&fixture(family)).unwrap()
}

fn file<'a>(files: &'a Files, name: &str) -> &'a [u8] {
    &files.iter().find(|(path, _)| path == name).unwrap_or_else(|| panic!("no {name}")).1
}

/// The files of a fixture folder, in memory.
fn load(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// An adapter's files with a text of its configuration exchanged.
fn edited(case: &str, name: &str, from: &str, to: &str) -> Files {
    let mut files = load(&fixture("adapters").join(case));
    let (_, bytes) = files.iter_mut().find(|(path, _)| path == name).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from), "{from} is not in {name}");
    *bytes = text.replacen(from, to, 1).into_bytes();
    files
}

fn refusal(files: &Files) -> String {
    AdapterFolder::parse(files).unwrap_err().to_string()
}

#[test]
fn adapters_fit_their_trunk_and_are_written_as_the_peer_writes_them() {
    for case in ADAPTERS {
        let folder = adapter(case);
        folder.check(&trunk(case)).unwrap_or_else(|error| panic!("{case}: {error}"));
        let files = folder.files().unwrap();
        for (name, bytes) in load(&fixture("adapters").join(case)) {
            let written = file(&files, &name);
            if name.contains(".bin") {
                // Torch's own archive has more entries; the tensors are what counts.
                assert_eq!(torch_file::read(written), torch_file::read(&bytes), "{case}/{name}");
            } else {
                assert_eq!(written, bytes, "{case}/{name}");
            }
        }
        assert_eq!(AdapterFolder::parse(&files).unwrap(), folder, "{case}");
        assert_eq!(files, folder.files().unwrap(), "{case} is written with the same bytes again");
    }
}

#[test]
fn either_format_alone_is_enough() {
    for case in ADAPTERS {
        let folder = adapter(case);
        let files = folder.files().unwrap();
        for ending in [".bin", ".safetensors"] {
            let some: Files = files.iter().filter(|(name, _)| !name.ends_with(ending)).cloned().collect();
            assert_eq!(AdapterFolder::parse(&some).unwrap(), folder, "{case} without {ending}");
        }
        let none: Files = files.iter().filter(|(name, _)| name.contains(".json")).cloned().collect();
        assert!(refusal(&none).contains("has no adapter.safetensors or pytorch_adapter.bin"));
    }
}

#[test]
fn options_of_the_peer_are_understood() {
    let AdapterConfig::Bottleneck(norms) = adapter("bert_norms_and_gate").config else { panic!() };
    assert!(norms.ln_before && norms.ln_after && norms.use_gating);
    assert_eq!(norms.scaling, Scaling::Trained(TrainedScaling::Learned));
    let AdapterConfig::Bottleneck(map) = adapter("bert_reduction_map").config else { panic!() };
    let factors = [("1".to_owned(), 2.0), ("default".to_owned(), 4.0)];
    assert_eq!((map.reduction_factor, map.leave_out), (ReductionFactor::Layers(factors.into()), vec![0]));
    let lora = adapter("bert_lora");
    let AdapterConfig::Lora(config) = &lora.config else { panic!() };
    assert_eq!((config.r, config.attn_matrices.len()), (2, 3));
    assert!((config.alpha - 16.0).abs() < f64::EPSILON);
    let head = lora.head.unwrap().head;
    let labels = ["zürich", "b", "LABEL_10"].map(str::to_owned).to_vec();
    assert_eq!((head.output, head.layers), (HeadOutput::Classification { labels }, 1));
    assert_eq!(adapter("bert_reduction_map").head.unwrap().head.output, HeadOutput::Regression);
}

#[test]
fn a_layer_norm_with_two_names_is_one_tensor() {
    let folder = adapter("bert_norms_and_gate");
    let norm = "bert.encoder.layer.0.output.adapters.norms_and_gate.adapter_norm_before.weight";
    let alias = "bert.encoder.layer.0.output.adapters.norms_and_gate.adapter_down.0.weight";
    assert!(folder.tensors.contains_key(norm) && !folder.tensors.contains_key(alias));
    let files = folder.files().unwrap();
    let mut stored = safetensors::read(file(&files, "adapter.safetensors")).unwrap();
    assert_eq!(stored[norm], stored[alias]);
    stored.get_mut(alias).unwrap().values[0] += 1.0;
    let mut damaged: Files = files.into_iter().filter(|(name, _)| name != "adapter.safetensors").collect();
    damaged.push(("adapter.safetensors".into(), safetensors::write(&stored, &[].into())));
    assert!(refusal(&damaged).contains("which is the same layer norm"));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let cases = [
        ("bert_double_seq_bn", "\"phm_layer\": false", "\"phm_layer\": true", "compacter layers are not implemented"),
        (
            "bert_double_seq_bn",
            "\"inv_adapter\": null",
            "\"inv_adapter\": \"nice\"",
            "invertible adapters are not implemented",
        ),
        ("bert_double_seq_bn", "\"stochastic_depth\": 0.0", "\"stochastic_depth\": 0.1", "\"stochastic_depth\" is 0.1"),
        (
            "bert_double_seq_bn",
            "\"residual_before_ln\": true,\n    \"s",
            "\"residual_before_ln\": \"post_add\",\n    \"s",
            "is \"post_add\"",
        ),
        ("bert_double_seq_bn", "\"swish\"", "\"mish\"", "\"non_linearity\" is \"mish\"; implemented are relu"),
        ("bert_double_seq_bn", "\"init_weights\": \"bert\"", "\"init_weights\": \"lora\"", "bottlenecks start as"),
        (
            "bert_double_seq_bn",
            "\"use_gating\"",
            "\"moon\": 3, \"use_gating\"",
            "\"moon\" is 3; this option is not known",
        ),
        (
            "bert_double_seq_bn",
            "\"mh_adapter\"",
            "\"attention_type\"",
            "\"mh_adapter\" is absent; true or false is needed",
        ),
        ("bert_double_seq_bn", "\"dropout\": 0.0", "\"dropout\": 1", "\"dropout\" is 1; a number from 0 to below 1"),
        (
            "bert_double_seq_bn",
            "\"model_type\": \"bert\"",
            "\"model_type\": \"t5\"",
            "\"model_type\" is \"t5\"; supported are",
        ),
        (
            "bert_lora",
            "\"architecture\": \"lora\"",
            "\"architecture\": \"prefix_tuning\"",
            "\"architecture\" is \"prefix_tuning\"",
        ),
        ("bert_lora", "\"composition_mode\": \"add\"", "\"composition_mode\": \"scale\"", "\"scale\" is (IA)³"),
        ("bert_lora", "\"use_dora\": false", "\"use_dora\": true", "DoRA is not implemented"),
        ("bert_lora", "\"vera_d\": null", "\"vera_d\": 0.1", "VeRA is not implemented"),
        ("bert_lora", "\"dtype\": null", "\"dtype\": \"float16\"", "LoRA is computed in float32"),
        ("bert_lora", "\"r\": 2", "\"r\": 0", "\"r\" is 0; a whole number from 1"),
    ];
    for (case, from, to, expected) in cases {
        let message = refusal(&edited(case, "adapter_config.json", from, to));
        assert!(message.contains(expected) && message.contains("adapter_config.json"), "{message}");
    }
}

#[test]
fn heads_are_refused_by_key() {
    let cases = [
        ("\"classification\"", "\"tagging\"", "\"head_type\" is \"tagging\"; implemented is"),
        ("\"num_labels\": 3", "\"num_labels\": 4", "num_labels is 4, as many labels are needed"),
        ("\"LABEL_10\": 2", "\"LABEL_10\": 1", "labels with the ids from 0, each once"),
        ("\"LABEL_10\": 2", "\"LABEL_10\": 7", "labels with the ids from 0, each once"),
        ("\"layers\": 1", "\"layers\": 2", "has no tensor \"heads.lora.1.bias\" of shape [8]"),
    ];
    for (from, to, expected) in cases {
        let message = refusal(&edited("bert_lora", "head_config.json", from, to));
        let shape = message.contains("heads.lora.1.weight\" has shape [3, 8], the configuration asks for [8, 8]");
        assert!(message.contains(expected) || (to == "\"layers\": 2" && shape), "{message}");
    }
}

#[test]
fn files_of_older_releases_mean_what_they_meant() {
    let read = |files: &Files| AdapterFolder::parse(files).unwrap().config;
    let old = edited("bert_lora", "adapter_config.json", "adapters.1.3.0", "adapters.1.0.1");
    let AdapterConfig::Lora(lora) = read(&old) else { panic!() };
    assert!((lora.alpha - 2.0).abs() < f64::EPSILON, "alpha is r before 1.1.0");
    let named = edited("bert_lora", "adapter_config.json", "adapters.1.3.0", "3.2.1");
    let AdapterConfig::Lora(lora) = read(&named) else { panic!() };
    assert!((lora.alpha - 16.0).abs() < f64::EPSILON, "other libraries scaled rightly");

    for (name, meaning) in [("gelu", NonLinearity::GeluNew), ("gelu_orig", NonLinearity::Gelu)] {
        let mut files = edited("bert_double_seq_bn", "adapter_config.json", "\"swish\"", &format!("\"{name}\""));
        let (_, bytes) = files.iter_mut().find(|(path, _)| path == "adapter_config.json").unwrap();
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace("\"version\"", "\"library\"").into_bytes();
        let AdapterConfig::Bottleneck(config) = read(&files) else { panic!() };
        assert_eq!(config.non_linearity, meaning);
    }
}

#[test]
fn tensors_of_the_first_releases_get_todays_names() {
    let case = "bert_double_seq_bn";
    let folder = adapter(case);
    let old = folder.tensors.iter().map(|(name, tensor)| {
        let name = name.strip_prefix("bert.").unwrap();
        let name = name.replace("attention.output.adapters", "attention.output.attention_text_task_adapters");
        (name.replace(".output.adapters", ".output.layer_text_task_adapters"), tensor.clone())
    });
    let mut files = edited(case, "adapter_config.json", "\"inv_adapter\": null", "\"inv_adapter\": \"nice\"");
    files.retain(|(name, _)| !name.starts_with("pytorch_adapter") && !name.starts_with("adapter.safe"));
    files.push(("adapter.safetensors".into(), safetensors::write(&old.collect(), &[].into())));
    assert!(refusal(&files).contains("invertible adapters are not implemented"));
    let (_, bytes) = files.iter_mut().find(|(path, _)| path == "adapter_config.json").unwrap();
    *bytes =
        String::from_utf8(bytes.clone()).unwrap().replace("\"name\"", "\"type\": \"text_task\", \"name\"").into_bytes();
    assert_eq!(
        AdapterFolder::parse(&files).unwrap().tensors,
        folder.tensors,
        "a task adapter never used the invertible one"
    );
}

#[test]
fn an_adapter_is_checked_against_the_trunk() {
    let message = adapter("bert_lora").check(&trunk("roberta")).unwrap_err().to_string();
    assert!(message.contains("\"model_type\" is \"bert\"; the base model's is \"roberta\""), "{message}");
    let mut wide = trunk("bert");
    wide.hidden_size = 16;
    let message = adapter("bert_lora").check(&wide).unwrap_err().to_string();
    assert!(message.contains("\"hidden_size\" is 8; the base model's is 16"), "{message}");
    let mut deep = trunk("bert");
    deep.layers = 3;
    let message = adapter("bert_double_seq_bn").check(&deep).unwrap_err().to_string();
    assert!(message.contains("no tensor \"bert.encoder.layer.2.attention.output.adapters"), "{message}");
    deep.layers = 1;
    let message = adapter("bert_double_seq_bn").check(&deep).unwrap_err().to_string();
    assert!(message.contains("encoder.layer.1.") && message.contains("has no place for"), "{message}");
}

#[test]
fn an_adapter_cannot_be_stored_with_tensors_of_another() {
    let mut folder = adapter("bert_lora");
    folder.tensors = rename(folder.tensors, "lora", "slot0");
    assert!(folder.files().unwrap_err().to_string().contains("\"lora\" has no place for"));
    let mut folder = adapter("bert_lora");
    folder.head.as_mut().unwrap().tensors.insert("heads.lora.9.bias".into(), HostTensor::zeros(vec![1]));
    assert!(folder.files().unwrap_err().to_string().contains("heads.lora.9.bias"));
}

#[test]
fn a_fusion_keeps_to_its_own_tensors() {
    let folder = FusionFolder::read(&fixture("fusion")).unwrap();
    assert_eq!((folder.name.as_str(), folder.adapter_names.as_slice()), ("a,b", &["a".to_owned(), "b".to_owned()][..]));
    let all = safetensors::read_file(&fixture("fusion/model_adapter_fusion.safetensors")).unwrap();
    assert_eq!((all.len(), folder.tensors.len()), (20, 10), "the peer stored the fusion a,b2 with it");
    let adapter = AdapterConfig::preset("seq_bn").unwrap();
    folder.check(&[&adapter, &adapter], &trunk("bert")).unwrap();
    assert_eq!(folder.head.as_ref().unwrap().name, "both");
    let files = folder.files().unwrap();
    for name in ["adapter_fusion_config.json", "head_config.json", "model_head.safetensors"] {
        assert_eq!(file(&files, name), fs::read(fixture("fusion").join(name)).unwrap(), "{name}");
    }
    assert_eq!(FusionFolder::parse(&files).unwrap(), folder);
    let only_torch: Files = files.into_iter().filter(|(name, _)| !name.contains(".safetensors")).collect();
    assert_eq!(FusionFolder::parse(&only_torch).unwrap(), folder);
}

#[test]
fn a_setup_holds_everything_that_it_names() {
    let folder = SetupFolder::read(&fixture("setup")).unwrap();
    assert_eq!(folder.composition.to_string(), "Fuse[a, b]");
    assert_eq!((folder.adapters.len(), folder.fusions.len(), folder.heads.len()), (2, 1, 1));
    let files = folder.files().unwrap();
    for name in
        ["adapter_setup.json", "a/adapter_config.json", "a,b/adapter_fusion_config.json", "both/head_config.json"]
    {
        assert_eq!(file(&files, name), fs::read(fixture("setup").join(name)).unwrap(), "{name}");
    }
    assert_eq!(SetupFolder::parse(&files).unwrap(), folder);
    let written = tempfile::tempdir().unwrap();
    write_folder(written.path(), &files).unwrap();
    assert_eq!(SetupFolder::read(written.path()).unwrap(), folder);
    assert_eq!(HeadFolder::read(&written.path().join("both")).unwrap(), folder.heads[0]);

    let lacking: Files = files.iter().filter(|(name, _)| !name.starts_with("b/")).cloned().collect();
    let message = SetupFolder::parse(&lacking).unwrap_err().to_string();
    assert!(message.contains("b has no adapter_config.json"), "{message}");
}

#[test]
fn a_fusion_with_its_own_name_is_stored_where_the_peer_looks_for_it() {
    let mut folder = SetupFolder::read(&fixture("setup")).unwrap();
    let plain = folder.files().unwrap();
    let Composition::Fuse { name, .. } = &mut folder.composition else { panic!() };
    *name = Some("trained".into());
    let fusion = &mut folder.fusions[0];
    fusion.tensors = rename(std::mem::take(&mut fusion.tensors), "a,b", "trained");
    fusion.name = "trained".into();
    assert_eq!(folder.files().unwrap(), plain);
    folder.fusions.clear();
    assert!(folder.files().unwrap_err().to_string().contains("the setup lacks its fusion \"trained\""));
}

#[test]
fn a_fixed_classification_head_becomes_a_flexible_one() {
    let case = "bert_lora";
    let mut files = load(&fixture("adapters").join(case));
    files.retain(|(name, _)| !name.contains("head"));
    let config = r#"{"config": null, "hidden_size": 8, "label2id": {"no": 0, "yes": 1}, "name": null, "num_labels": 2,
        "model_class": "BertForSequenceClassification", "model_name": "x", "model_type": "bert", "version": "adapters.1.3.0"}"#;
    files.push(("head_config.json".into(), config.into()));
    let tensors = [("classifier.weight", vec![2, 8]), ("classifier.bias", vec![2])];
    let tensors = tensors.map(|(name, shape)| (name.to_owned(), HostTensor::zeros(shape))).into();
    files.push(("pytorch_model_head.bin".into(), torch_file::write(&tensors, &[].into(), "archive").unwrap()));
    let head = AdapterFolder::parse(&files).unwrap().head.unwrap();
    assert_eq!((head.name.as_str(), head.head.layers, head.head.use_pooler), ("lora", 1, true));
    assert_eq!(head.tensors.keys().collect::<Vec<_>>(), ["heads.lora.1.bias", "heads.lora.1.weight"]);
}
