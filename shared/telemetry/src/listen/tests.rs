//! What is answered, to whom, and which addresses are refused.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

struct Fixed(Result<(), String>);

impl Source for Fixed {
    async fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), String> {
        self.0.clone()
    }

    async fn metrics(&self) -> Result<String, String> {
        Ok("graftwork_workers 1\n# EOF\n".to_owned())
    }
}

async fn get(at: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n{header}\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[tokio::test]
async fn health_is_told_to_everybody_and_numbers_to_whoever_has_the_token() {
    let token: Check = Arc::new(|shown| shown == "right");
    let guard = Guard { tls: None, token: Some(token) };
    let source = Fixed(Err("it waits to lead".to_owned()));
    let listening = listen(&address("127.0.0.1:0"), guard, source).await.unwrap();
    let at = listening.address;
    assert!(get(at, "/healthz", "").await.starts_with("HTTP/1.1 200"));
    let waiting = get(at, "/readyz", "").await;
    assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("it waits to lead"), "{waiting}");
    assert!(get(at, "/metrics", "").await.starts_with("HTTP/1.1 401"));
    assert!(get(at, "/metrics", "authorization: Bearer wrong\r\n").await.starts_with("HTTP/1.1 401"));
    let numbers = get(at, "/metrics", "authorization: Bearer right\r\n").await;
    assert!(numbers.contains("graftwork_workers 1") && numbers.contains(text::CONTENT_TYPE), "{numbers}");
    assert!(get(at, "/other", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn on_loopback_numbers_need_no_token() {
    let listening = listen(&address("127.0.0.1:0"), Guard::default(), Fixed(Ok(()))).await.unwrap();
    assert!(get(listening.address, "/metrics", "").await.starts_with("HTTP/1.1 200"));
    assert!(get(listening.address, "/readyz", "").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn each_of_several_takes_a_port_of_its_own() {
    // Two free ports, one behind the other; somebody else may take one of them, so it is tried more than once.
    for _ in 0..20 {
        let any = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = any.local_addr().unwrap().port();
        let Ok(next) = TcpListener::bind(("127.0.0.1", first.saturating_add(1))).await else { continue };
        drop((any, next));
        let at = address(&format!("127.0.0.1:{first}"));
        let begin = || listen_on_a_free_port(&at, 2, Guard::default(), Fixed(Ok(())));
        let (Ok(one), Ok(other)) = (begin().await, begin().await) else { continue };
        assert_eq!((one.address.port(), other.address.port()), (first, first + 1));
        assert!(get(other.address, "/metrics", "").await.starts_with("HTTP/1.1 200"));
        let said = begin().await.unwrap_err().to_string();
        assert!(said.contains("2 in all") && said.contains(&first.to_string()), "{said}");
        drop(one);
        // The task that listens ends a moment after its value.
        let again = async {
            loop {
                match begin().await {
                    Ok(again) => break again,
                    Err(_) => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let again = timeout(Duration::from_secs(5), again).await.unwrap();
        assert_eq!(again.address.port(), first, "what is free again is taken again");
        return;
    }
    panic!("no two free ports in twenty tries");
}

#[tokio::test]
async fn a_port_that_is_refused_for_another_reason_is_not_passed_over() {
    // An address that is of no machine.
    let error = bind("192.0.2.1:9465".parse().unwrap(), 16).await.unwrap_err();
    assert_ne!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
}

#[test]
fn what_others_reach_wants_tls_and_a_token() {
    let token: Check = Arc::new(|_| true);
    let refused = |guard: Guard, at: &str| allowed(&address(at), &guard).err().map(|error| error.to_string());
    let said = refused(Guard::default(), "0.0.0.0:9464").unwrap();
    assert!(said.contains("neither a certificate nor a token"), "{said}");
    let said = refused(Guard { tls: None, token: Some(token) }, "https://10.0.0.1:9464").unwrap();
    assert!(said.contains("no certificate is given"), "{said}");
    assert!(refused(Guard::default(), "https://127.0.0.1:9464").is_some(), "TLS without a certificate");
    assert!(refused(Guard::default(), "unix:///tmp/x").unwrap().contains("no address of TCP"));
    assert_eq!(refused(Guard::default(), "127.0.0.1:9464"), None);
}
