//! What the command line asks for.

use graftwork_engine::Dropout;

use super::{Failure, rows::Lengths};

/// The whole command line.
pub(crate) struct Options {
    pub(crate) base: String,
    pub(crate) preset: String,
    pub(crate) seconds: f64,
    pub(crate) task: Task,
    pub(crate) source: Source,
    pub(crate) batches: Vec<usize>,
    /// Lanes and threads.
    pub(crate) cuts: Vec<(usize, usize)>,
    pub(crate) json: bool,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Task {
    Train(Option<Dropout>),
    Predict,
}

/// Where rows come from.
pub(crate) enum Source {
    Lengths(Vec<Lengths>),
    Texts(Texts),
}

/// Rows of a Parquet file.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) file: String,
    pub(crate) columns: Vec<String>,
    pub(crate) label: String,
}

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let (mut places, mut json, mut arguments) = (Vec::new(), false, arguments);
        let mut texts = Texts { columns: vec!["text".to_owned()], label: "label".to_owned(), ..Texts::default() };
        let (mut lengths, mut batches, mut cuts) = (Lengths::usual(), None, None);
        while let Some(argument) = arguments.next() {
            let Some(option) = argument.strip_prefix("--") else {
                places.push(argument);
                continue;
            };
            if option == "json" {
                json = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("--{option} needs a value"))?;
            match option {
                "texts" => texts.file = value,
                "columns" => texts.columns = value.split(',').map(str::to_owned).collect(),
                "label" => texts.label = value,
                "tokens" => lengths = value.split(',').map(Lengths::exactly).collect::<Result<_, _>>()?,
                "batches" => batches = Some(value.split(',').map(str::parse).collect::<Result<_, _>>()?),
                "cuts" => cuts = Some(value.split(',').map(cut).collect::<Result<_, _>>()?),
                other => return Err(format!("there is no option --{other}").into()),
            }
        }
        let mut places = places.into_iter();
        let base = places.next().unwrap_or_else(|| ".graftwork/base/all-minilm-l6-v2".to_owned());
        let preset = places.next().unwrap_or_else(|| "seq_bn".to_owned());
        let seconds = places.next().map_or(Ok(4.0), |text| text.parse())?;
        let task = match preset.split_once('+') {
            Some((_, "dropout")) => Task::Train(Some(Dropout { seed: 17, base_model: true })),
            Some((_, "predict")) => Task::Predict,
            Some((_, other)) => return Err(format!("+{other} is neither +dropout nor +predict").into()),
            None => Task::Train(None),
        };
        let usual = match task {
            Task::Predict if preset.starts_with("split") => vec![16, 64],
            Task::Predict => vec![1, 16, 64],
            Task::Train(_) => vec![16, 64],
        };
        let cuts_of = |task| if task == Task::Predict { vec![(1, 1)] } else { vec![(1, 1), (2, 1), (2, 2)] };
        Ok(Self {
            base,
            preset,
            seconds,
            task,
            source: if texts.file.is_empty() { Source::Lengths(lengths) } else { Source::Texts(texts) },
            batches: batches.unwrap_or(usual),
            cuts: cuts.unwrap_or_else(|| cuts_of(task)),
            json,
        })
    }

    /// The preset without what stands behind its plus.
    pub(crate) fn method(&self) -> &str {
        self.preset.split('+').next().unwrap_or_default()
    }
}

/// `2x1`: two lanes on one thread.
fn cut(text: &str) -> Result<(usize, usize), Failure> {
    let (lanes, threads) = text.split_once('x').ok_or_else(|| format!("{text} is not LANESxTHREADS"))?;
    let (lanes, threads): (usize, usize) = (lanes.parse()?, threads.parse()?);
    if threads == 0 || !lanes.is_multiple_of(threads) {
        return Err(format!("{lanes} lanes cannot be shared evenly by {threads} threads").into());
    }
    Ok((lanes, threads))
}
