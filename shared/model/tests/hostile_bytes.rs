//! Readers take bytes from strangers: whatever is changed, cut off or added, they answer with a value or an error, in
//! bounded time and memory, and never panic.

#![expect(clippy::unwrap_used, reason = "a failed helper of a test is a failed test")]

use std::{fs, path::Path};

use graftwork_model::{
    TrunkDescription,
    hub::{AdapterFolder, Files, FusionFolder, SetupFolder},
    safetensors, torch_file,
};
use proptest::prelude::*;

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)).unwrap()
}

/// A few changed bytes, and perhaps a cut or something appended.
fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let place = any::<prop::sample::Index>();
    let one = prop_oneof![
        8 => (place.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        2 => (place.clone(), 0_u8..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => place.clone().prop_map(Damage::Cut),
        1 => (place, prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ];
    prop::collection::vec(one, 1..6)
}

#[derive(Clone, Debug)]
enum Damage {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match damage {
            Damage::Set(at, byte) => bytes[at.index(length)] = *byte,
            Damage::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

/// A file with one damaged member, as a folder in memory.
fn with_damaged(folder: &str, names: &[&str], victim: usize, damages: &[Damage]) -> Files {
    let read = |(position, name): (usize, &&str)| {
        let bytes = fixture(&format!("{folder}/{name}"));
        ((*name).to_owned(), if position == victim { damaged(bytes, damages) } else { bytes })
    };
    names.iter().enumerate().map(read).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn safetensors_never_panic(damages in damage()) {
        let bytes = damaged(fixture("adapters/bert_double_seq_bn/adapter.safetensors"), &damages);
        let _ = safetensors::read_raw(&bytes).map(|_| safetensors::metadata(&bytes));
        if let Ok(tensors) = safetensors::read(&bytes) {
            // What is read can be written and read again.
            prop_assert_eq!(safetensors::read(&safetensors::write(&tensors, &[].into())).unwrap().len(), tensors.len());
        }
    }

    #[test]
    fn torch_files_never_panic(damages in damage()) {
        let _ = torch_file::read(&damaged(fixture("adapters/bert_norms_and_gate/pytorch_adapter.bin"), &damages));
    }

    #[test]
    fn configurations_never_panic(damages in damage()) {
        let _ = TrunkDescription::parse(&damaged(fixture("bert/config.json"), &damages), "config.json");
    }

    #[test]
    fn adapter_folders_never_panic(damages in damage(), victim in 0_usize..4) {
        let names = ["adapter_config.json", "adapter.safetensors", "head_config.json", "model_head.safetensors"];
        let _ = AdapterFolder::parse(&with_damaged("adapters/bert_lora", &names, victim, &damages)).map(|f| f.files());
    }

    #[test]
    fn fusion_folders_never_panic(damages in damage()) {
        let names = ["adapter_fusion_config.json", "model_adapter_fusion.safetensors"];
        let _ = FusionFolder::parse(&with_damaged("fusion", &names, 0, &damages)).map(|f| f.files());
    }

    #[test]
    fn setups_never_panic(damages in damage()) {
        let _ = SetupFolder::parse(&with_damaged("setup", &["adapter_setup.json"], 0, &damages));
    }
}

/// A torch archive around any pickle.
fn archive(pickle: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle), ("a/data/0", &[0; 16]), ("a/version", b"3\n")] {
        zip.start_file(name, plain).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn refusal(pickle: &[u8]) -> String {
    torch_file::read(&archive(pickle)).unwrap_err().to_string()
}

/// One tensor of fp32 named "t" with the pickled `sizes` (offset, shape, strides) and number of elements.
fn tensor(elements: &[u8], sizes: &[u8]) -> Vec<u8> {
    let head: &[u8] =
        b"\x80\x02}X\x01\0\0\0tctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n";
    [head, b"X\x01\0\0\x000X\x03\0\0\0cpu", elements, b"tQ", sizes, b"\x89ccollections\nOrderedDict\n)RtRs."].concat()
}

#[test]
fn a_pickle_that_names_a_function_is_refused_by_name() {
    let call = refusal(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.");
    assert!(call.contains("asks for the Python object os.system") && call.contains("not executed"), "{call}");
    for name in ["builtins\neval", "torch\nload", "torch\nIntStorage", "collections\nCounter", "torch._utils\nx"] {
        assert!(refusal(format!("\u{2}c{name}\n").replace('\u{2}', "}").as_bytes()).contains(&name.replace('\n', ".")));
    }
}

#[test]
fn instructions_that_state_dictionaries_do_not_need_are_refused() {
    for opcode in [b'i', b'o', b'0', b'2', b'S', b'I', b'P', b'e', b'a', b'd', b'l', 0x81, 0x82, 0x8c, 0x93, 0x95] {
        let message = refusal(&[b'}', opcode]);
        assert!(message.contains(&format!("instruction {opcode:#04x} at byte 1")), "{message}");
    }
    assert!(refusal(b"\x80\x04}.").contains("protocol 4; torch writes 2"));
}

#[test]
fn views_stay_inside_their_storage() {
    let good = torch_file::read(&archive(&tensor(b"K\x04", b"K\x00K\x02K\x02\x86K\x01K\x02\x86"))).unwrap();
    assert_eq!(good["t"].shape, [2, 2]);
    let scalar = torch_file::read(&archive(&tensor(b"K\x04", b"K\x03))"))).unwrap();
    assert_eq!((scalar["t"].shape.len(), scalar["t"].values.len()), (0, 1));
    for (elements, sizes, expected) in [
        (&b"K\x05"[..], &b"K\x00K\x05\x85K\x01\x85"[..], "needs 20 bytes, there are 16"),
        (b"K\x04", b"K\x01K\x04\x85K\x01\x85", "lies outside of its storage"),
        (b"K\x04", b"K\x00K\x02\x85K\x04\x85", "lies outside of its storage"),
        (b"K\x04", b"J\xff\xff\xff\xffK\x01\x85K\x01\x85", "lies outside of its storage"),
        (b"K\x04", b"K\x00J\xff\xff\xff\xff\x85K\x01\x85", "lies outside of its storage"),
        (b"J\xff\xff\xff\xff", b"K\x00K\x01\x85K\x01\x85", "truncated"),
        (
            b"K\x04",
            b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x00\x85",
            "announces 9223372036854775807 elements",
        ),
        (b"K\x04", b"K\x00K\x01K\x01\x86K\x01\x85", "2 dimensions and 1 strides"),
    ] {
        let message = refusal(&tensor(elements, sizes));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let mut pickle = b"\x80\x02)".to_vec();
    pickle.resize(1_000_000, 0x85);
    assert!(refusal(&pickle).contains("tuples nest more than 8 deep"));
    let setup = format!("{{\"adapter_setup\": {}", "{\"type\":\"Stack\",\"children\":[".repeat(100_000));
    let files = vec![("adapter_setup.json".to_owned(), setup.into_bytes())];
    assert!(SetupFolder::parse(&files).unwrap_err().to_string().contains("not valid JSON"));
}

#[test]
fn checksums_are_compared() {
    let mut bytes = fixture("adapters/bert_lora/pytorch_adapter.bin");
    let file = torch_file::read(&bytes).unwrap();
    let value = file.values().next().unwrap().values[0].to_le_bytes();
    let at = bytes.windows(4).position(|window| window == value).unwrap();
    bytes[at] ^= 1;
    assert!(torch_file::read(&bytes).unwrap_err().to_string().contains("not a readable torch file"));
}
