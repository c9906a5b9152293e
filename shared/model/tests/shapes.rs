//! Names, shapes and sizes of what training makes, by the arithmetic of the papers.

#![expect(clippy::unwrap_used, reason = "a failed helper of a test is a failed test")]

use std::path::Path;

use graftwork_model::{
    Footprint, HostTensor, Tensors, TrunkDescription, adapter_shapes, fusion_shapes, head_shapes, parameter_count,
    safetensors, torch_file,
};
use graftwork_shared::{
    adapter::{AdapterConfig, Bottleneck, FusionConfig, Lora, ReductionFactor, Scaling, TrainedScaling},
    digest::Digest,
    head::{Head, HeadOutput},
    recipe::{FusedAdapter, Method},
};

/// Six layers, 384 wide, 1536 between the feed-forward projections.
fn trunk() -> TrunkDescription {
    let text = r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}"#;
    TrunkDescription::parse(text.as_bytes(), "config.json").unwrap()
}

fn preset(name: &str) -> AdapterConfig {
    AdapterConfig::preset(name).unwrap()
}

fn count(config: &AdapterConfig) -> u64 {
    parameter_count(&adapter_shapes(config, &trunk(), "x").unwrap())
}

fn problem(config: &AdapterConfig) -> String {
    adapter_shapes(config, &trunk(), "x").unwrap_err().to_string()
}

fn classes(count: usize) -> Head {
    Head::new(HeadOutput::Classification { labels: (0..count).map(|i| i.to_string()).collect() })
}

#[test]
fn presets_have_the_sizes_of_their_papers() {
    let bottleneck = |width: u64| 2 * 384 * width + width + 384;
    assert_eq!(count(&preset("seq_bn")), 6 * bottleneck(24));
    assert_eq!(count(&preset("double_seq_bn")), 2 * 6 * bottleneck(24));
    assert_eq!(count(&preset("par_bn")), 6 * bottleneck(192));
    assert_eq!(count(&preset("scaled_par_bn")), 6 * (bottleneck(192) + 1));
    assert_eq!(count(&preset("lora")), 6 * 2 * (2 * 8 * 384));
}

#[test]
fn every_option_adds_its_tensors() {
    let mut config = Bottleneck::sequential();
    config.ln_before = true;
    config.ln_after = true;
    config.use_gating = true;
    config.scaling = Scaling::Trained(TrainedScaling::Channel);
    config.leave_out = vec![0, 1, 2, 3, 4];
    let shapes = adapter_shapes(&AdapterConfig::Bottleneck(config), &trunk(), "x").unwrap();
    let short: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| (name.strip_prefix("bert.encoder.layer.5.output.adapters.x.").unwrap(), shape.as_slice()))
        .collect();
    let expected: &[(&str, &[usize])] = &[
        ("scaling", &[384]),
        ("adapter_norm_before.weight", &[384]),
        ("adapter_norm_before.bias", &[384]),
        ("adapter_down.1.weight", &[24, 384]),
        ("adapter_down.1.bias", &[24]),
        ("adapter_up.weight", &[384, 24]),
        ("adapter_up.bias", &[384]),
        ("adapter_norm_after.weight", &[384]),
        ("adapter_norm_after.bias", &[384]),
        ("gate.weight", &[1, 384]),
        ("gate.bias", &[1]),
    ];
    assert_eq!(short, expected);
}

#[test]
fn lora_stands_where_it_is_asked_for() {
    let config = Lora { selfattn_lora: false, intermediate_lora: true, output_lora: true, r: 4, ..Lora::default() };
    let shapes = adapter_shapes(&AdapterConfig::Lora(config), &trunk(), "x").unwrap();
    let first: Vec<_> = shapes.iter().take(4).map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let at = "bert.encoder.layer.0";
    let names = [
        "intermediate.dense.loras.x.lora_A",
        "intermediate.dense.loras.x.lora_B",
        "output.dense.loras.x.lora_A",
        "output.dense.loras.x.lora_B",
    ];
    let names = names.map(|name| format!("{at}.{name}"));
    let sizes: [&[usize]; 4] = [&[4, 384], &[1536, 4], &[4, 1536], &[384, 4]];
    assert_eq!(first, names.iter().map(String::as_str).zip(sizes).collect::<Vec<_>>());
    assert_eq!(shapes.len(), 6 * 4);
}

#[test]
fn impossible_options_are_refused_with_their_value() {
    let with = |change: fn(&mut Bottleneck)| {
        let mut config = Bottleneck::sequential();
        change(&mut config);
        problem(&AdapterConfig::Bottleneck(config))
    };
    assert!(with(|c| c.leave_out = vec![6]).contains("leave_out names layer 6, the base model has layers 0 to 5"));
    assert!(with(|c| c.reduction_factor = ReductionFactor::All(0.0)).contains("is 0; a number from"));
    assert!(with(|c| c.reduction_factor = ReductionFactor::All(f64::NAN)).contains("is NaN"));
    let map = |c: &mut Bottleneck| c.reduction_factor = ReductionFactor::Layers([("0".to_owned(), 2.0)].into());
    assert!(with(map).contains("names neither layer 1 nor \"default\""));
    assert!(with(|c| c.output_adapter = false).contains("the adapter has no site"));
    assert!(problem(&AdapterConfig::Lora(Lora { r: 0, ..Lora::default() })).contains("r is 0"));
}

#[test]
fn a_fusion_stands_where_its_adapters_stand() {
    let (fusion, double) = (FusionConfig::default(), preset("double_seq_bn"));
    let shapes = fusion_shapes(&fusion, &[&double, &double], &trunk(), "a,b").unwrap();
    assert_eq!(shapes.len(), 6 * 2 * 5);
    assert_eq!(shapes[0].0, "bert.encoder.layer.0.attention.output.adapter_fusion_layer.a,b.query.weight");
    assert_eq!(parameter_count(&shapes), 12 * (3 * 384 * 384 + 2 * 384));
    let refused = |config: &FusionConfig, adapters: &[&AdapterConfig]| {
        fusion_shapes(config, adapters, &trunk(), "f").unwrap_err().to_string()
    };
    assert!(refused(&fusion, &[&double, &preset("seq_bn")]).contains("must agree in mh_adapter"));
    assert!(refused(&fusion, &[&preset("lora")]).contains("only bottleneck adapters can be fused"));
    assert!(refused(&fusion, &[]).contains("at least one adapter"));
    let none = FusionConfig { key: false, query: false, value: false, ..fusion };
    assert!(refused(&none, &[&double]).contains("all are off"));
    let fixed = FusionConfig { value: false, ..FusionConfig::default() };
    assert_eq!(fusion_shapes(&fixed, &[&double], &trunk(), "f").unwrap().len(), 6 * 2 * 4);
}

#[test]
fn linear_layers_of_a_head_count_what_stands_between_them() {
    let mut head = classes(3);
    head.layers = 3;
    head.bias = false;
    let shapes = head_shapes(&head, &trunk(), "h").unwrap();
    let names: Vec<_> = shapes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["heads.h.1.weight", "heads.h.1.bias", "heads.h.4.weight", "heads.h.4.bias", "heads.h.7.weight"]);
    assert_eq!(shapes[4].1, [3, 384]);
    assert!(head_shapes(&classes(1), &trunk(), "h").unwrap_err().to_string().contains("has 1 classes; at least 2"));
    head.layers = 0;
    assert!(head_shapes(&head, &trunk(), "h").unwrap_err().to_string().contains("has 0 layers"));
    assert_eq!(head_shapes(&Head::new(HeadOutput::Regression), &trunk(), "h").unwrap()[2].1, [1, 384]);
}

#[test]
fn the_footprint_counts_what_is_trained_and_what_is_read() {
    let head = classes(2);
    let head_numbers = 384 * 384 + 384 + 2 * 384 + 2;
    let alone = Footprint::of(&Method::Adapter(preset("seq_bn")), &head, &trunk()).unwrap();
    let adapter = count(&preset("seq_bn"));
    assert_eq!((alone.trained_parameters, alone.frozen_parameters), (adapter + head_numbers, 0));
    // 22713216 with the pooler, as the published model card counts it.
    assert_eq!(alone.trunk_parameters, 22_713_216 - (384 * 384 + 384));
    assert_eq!(alone.stage_bytes(), 20 * alone.trained_parameters);
    let fused = FusedAdapter { config: preset("seq_bn"), origin: Digest::of(b"x") };
    let fusion = Method::Fusion { config: FusionConfig::default(), adapters: vec![fused.clone(), fused] };
    let fusion = Footprint::of(&fusion, &head, &trunk()).unwrap();
    assert_eq!(fusion.frozen_parameters, 2 * adapter);
    assert_eq!(fusion.trained_parameters, 6 * (3 * 384 * 384 + 2 * 384) + head_numbers);
    let pooled = Head { use_pooler: true, ..head };
    let pooled = Footprint::of(&Method::Adapter(preset("seq_bn")), &pooled, &trunk()).unwrap();
    assert_eq!(pooled.trunk_bytes(), 4 * 22_713_216);
}

fn sample() -> Tensors {
    let tensor = |shape: &[usize], from: f32| {
        let values = (0..shape.iter().product()).map(|i: usize| from + i as f32).collect();
        HostTensor::new(shape.to_vec(), values).unwrap()
    };
    [
        ("b", tensor(&[2, 3], 0.5)),
        ("a", tensor(&[], -1.0)),
        ("zürich", tensor(&[0, 4], 0.0)),
        ("c", tensor(&[70_000], 0.0)),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into()
}

#[test]
fn both_formats_keep_every_bit_and_give_equal_bytes_again() {
    let mut tensors = sample();
    tensors.get_mut("b").unwrap().values[1] = -0.0;
    tensors.get_mut("b").unwrap().values[2] = f32::MIN_POSITIVE / 4.0;
    let metadata = [("step".to_owned(), "12".to_owned()), ("cursor".to_owned(), "{\"row\": 3}".to_owned())].into();
    let bytes = safetensors::write(&tensors, &metadata);
    assert_eq!(safetensors::read(&bytes).unwrap(), tensors);
    assert_eq!(safetensors::metadata(&bytes).unwrap(), metadata);
    assert_eq!(bytes, safetensors::write(&tensors, &metadata));
    assert_eq!(safetensors::metadata(&safetensors::write(&tensors, &[].into())).unwrap(), [].into());
    assert!(safetensors::read(&safetensors::write(&Tensors::new(), &[].into())).unwrap().is_empty());

    let bytes = torch_file::write(&tensors, &[].into(), "stem").unwrap();
    assert_eq!(torch_file::read(&bytes).unwrap(), tensors);
    assert_eq!(bytes, torch_file::write(&tensors, &[].into(), "stem").unwrap());
    assert!(torch_file::read(&torch_file::write(&Tensors::new(), &[].into(), "x").unwrap()).unwrap().is_empty());
}

#[test]
fn names_that_share_a_storage_are_stored_once() {
    let tensors = sample();
    let plain = torch_file::write(&tensors, &[].into(), "x").unwrap();
    let aliases = [("c2".to_owned(), "c".to_owned())].into();
    let shared = torch_file::write(&tensors, &aliases, "x").unwrap();
    assert!(shared.len() < plain.len() + 300, "{} {}", shared.len(), plain.len());
    let read = torch_file::read(&shared).unwrap();
    assert_eq!(read["c2"], tensors["c"]);
    let lost = [("x".to_owned(), "nowhere".to_owned())].into();
    assert!(torch_file::write(&tensors, &lost, "x").unwrap_err().to_string().contains("alias of \"nowhere\""));
}

#[test]
fn raw_tensors_keep_their_types() {
    let bytes =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sharded/model-00002-of-00002.safetensors"));
    let bytes = bytes.unwrap();
    let raw = safetensors::read_raw(&bytes).unwrap();
    let tensor = &raw["encoder.layer.0.output.dense.weight"];
    assert_eq!(
        (tensor.dtype, tensor.shape.as_slice(), tensor.bytes.len()),
        (graftwork_model::Dtype::BF16, &[8, 12][..], 192)
    );
}
