//! Reading over HTTP from a small server of our own: ranges, bearer tokens, ETags, and what a server refuses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::{Folder, request};
use crate::{Access, DataError, Order, RowReader, open, select};

const TOKEN: &str = "token-of-the-test";

/// One file at `/data/a.parquet`.
struct Served {
    bytes: Vec<u8>,
    etag: &'static str,
    token: Option<&'static str>,
}

fn serve(served: Served) -> (String, Arc<Mutex<Served>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let served = Arc::new(Mutex::new(served));
    let shared = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || while answer(&stream, &shared).is_some() {});
        }
    });
    (address, served)
}

/// Answers one request; `None` when the connection ends.
fn answer(mut stream: &TcpStream, served: &Mutex<Served>) -> Option<()> {
    let mut lines = Vec::new();
    let mut reader = BufReader::new(Read::by_ref(&mut stream));
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let header = |name: &str| {
        let prefix = format!("{name}: ");
        lines.iter().find_map(|line| line.to_lowercase().starts_with(&prefix).then(|| line[prefix.len()..].to_owned()))
    };
    let served = served.lock().unwrap();
    let mut words = lines[0].split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let allowed = served.token.is_none_or(|token| header("authorization") == Some(format!("Bearer {token}")));
    let (status, body, range) = if !allowed {
        ("401 Unauthorized", &[][..], None)
    } else if path != "/data/a.parquet" {
        ("404 Not Found", &[][..], None)
    } else if let Some(range) = header("range") {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        let to = to.min(served.bytes.len() - 1);
        ("206 Partial Content", &served.bytes[from..=to], Some(format!("bytes {from}-{to}/{}", served.bytes.len())))
    } else {
        ("200 OK", &served.bytes[..], None)
    };
    let mut head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{}\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n",
        body.len(),
        served.etag
    );
    if let Some(range) = range {
        head.push_str(&format!("Content-Range: {range}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(body).ok()?;
    }
    stream.flush().ok()
}

#[test]
fn a_url_is_read_by_ranges_with_its_token_and_refused_when_its_etag_changed() {
    let folder = Folder::new();
    let bytes = std::fs::read(folder.shard("a.parquet", 0, 3000, 500)).unwrap();
    let (address, served) = serve(Served { bytes, etag: "one", token: Some(TOKEN) });
    let source = vec![format!("{address}/data/a.parquet")];
    let access = Access::with_secret("DATA_TOKEN", TOKEN);
    let files = folder.runtime.block_on(open(&source, &access)).unwrap();
    assert_eq!(files[0].identity.version, "\"one\"");
    let manifest = folder.runtime.block_on(select(&files, None, None, &access)).unwrap();
    let wanted = request(manifest, Order::Shuffled { seed: 3, window_bytes: 32 << 10 });
    let reader = RowReader::start(folder.runtime.handle(), wanted.clone(), access.clone());
    assert_eq!(reader.map(|row| row.map(|_| 1)).sum::<Result<u64, _>>(), Ok(3000));

    served.lock().unwrap().etag = "two";
    let mut reader = RowReader::start(folder.runtime.handle(), wanted, access);
    let error = reader.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::Changed { .. }), "{error}");
    assert!(error.to_string().contains("ETag was \"one\" and is \"two\""), "{error}");
}

#[test]
fn a_server_that_refuses_lacks_or_cannot_list_a_file_is_told_apart() {
    let folder = Folder::new();
    let (address, _served) = serve(Served { bytes: vec![0; 50], etag: "x", token: Some(TOKEN) });
    let fails = |path: &str, access: &Access| {
        folder.runtime.block_on(open(&vec![format!("{address}{path}")], access)).unwrap_err()
    };
    let refused = fails("/data/a.parquet", &Access::anonymous());
    assert!(matches!(refused, DataError::Refused { .. }), "{refused}");
    let access = Access::with_secret("DATA_TOKEN", TOKEN);
    assert!(matches!(fails("/data/b.parquet", &access), DataError::MissingFile { .. }));
    assert!(matches!(fails("/data/a.parquet", &access), DataError::Truncated { bytes: 50, .. }));
    assert!(fails("/data/*.parquet", &access).to_string().contains("cannot list files"));
    let leaked = fails("/data/*.parquet?sig=hunter2", &access).to_string();
    assert!(leaked.contains("query") && !leaked.contains("hunter2"), "{leaked}");
}

#[test]
fn a_server_that_is_gone_can_be_tried_again() {
    let folder = Folder::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let source = vec![format!("http://{closed}/a.parquet")];
    let error = folder.runtime.block_on(open(&source, &Access::anonymous())).unwrap_err();
    assert_eq!(error.blame(), graftwork_shared::assignment::Blame::Machine, "{error}");
}
