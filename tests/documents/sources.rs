//! Documents from Blob Storage, against Azurite and Microsoft's Python SDK, and against a service in
//! trouble. Set `PROMPTMILL_PEER_NODE_MODULES` and `PROMPTMILL_PEER_PYTHON`, as `scripts/test` does;
//! `PROMPTMILL_TEST_BLOBS=12000` makes the container larger than two pages of the service.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::num::NonZeroU32;
use std::path::Path;
use test_support as support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use promptmill::documents::source::{
    BlobContainer, BlobSettings, DocumentSource, DocumentSourceError, ListedDocument,
};
use serde_json::json;
use support::azurite::{Azurite, Filler};
use support::certificates;
use support::cli::{Ended, Place};
use support::proxy::Proxy;
use support::secrets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const LIMIT: u64 = 1 << 20;

fn emulator(sas: &str) -> BlobSettings {
    let sas = Some(sas.to_owned().into());
    BlobSettings { sas, emulator: true, ..BlobSettings::default() }
}

async fn list(source: &DocumentSource) -> Result<Vec<ListedDocument>, DocumentSourceError> {
    source.list(&["**/*".into()], &[]).await
}

fn names(found: &[ListedDocument]) -> Vec<&str> {
    found.iter().map(|listed| listed.name.as_str()).collect()
}

async fn text(
    source: &DocumentSource,
    listed: &ListedDocument,
) -> Result<String, DocumentSourceError> {
    let scratch = tempfile::tempdir().unwrap();
    let fetched = source.fetch(listed, LIMIT, scratch.path()).await?;
    let text = std::fs::read_to_string(&*fetched).unwrap();
    drop(fetched);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing is left behind");
    Ok(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_blobs_are_listed_and_only_changed_ones_need_a_download() {
    secrets::watch();
    let Some(azurite) = Azurite::start(None) else { return };
    let Some(mut filler) = Filler::start(&azurite, "docs", None) else { return };
    let odd = ["50% off #1?.txt", "a+b&c.txt", "規程/就業 規則.md", "規程/%E8%A6%8F.md"];
    for name in odd {
        filler.put(name, name);
    }
    filler.put("gone.txt", "gone");
    filler.tell(&json!(["snapshot", "gone.txt"]));
    filler.put("gone.txt", "gone, changed");
    filler.tell(&json!(["put", "規程/folder", "", {"hdi_isfolder": "true"}]));
    let many = std::env::var("PROMPTMILL_TEST_BLOBS").ok().map_or(30, |n| n.parse().unwrap());
    filler.tell(&json!(["put_many", many]));
    let settings = emulator(&filler.sas("rl", 1));
    let url = azurite.container("docs");
    let container = BlobContainer::open(&url, &settings).await.unwrap();
    let page = NonZeroU32::new(7).filter(|_| many < 5_000);
    let container = page.into_iter().fold(container, BlobContainer::with_page_size);
    let source = DocumentSource::Container(container);
    assert!(source.has_reliable_versions());

    let first = list(&source).await.unwrap();
    let theirs = filler.tell(&json!(["names"]));
    let mut theirs: Vec<_> =
        theirs.as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    theirs.retain(|name| *name != "規程/folder");
    assert_eq!(names(&first), theirs);
    assert_eq!(first.len(), odd.len() + 1 + many);
    for listed in first.iter().filter(|listed| odd.contains(&listed.name.as_str())) {
        assert_eq!(text(&source, listed).await.unwrap(), listed.name);
    }
    let below = DocumentSource::open(&format!("{url}/規程"), &settings).await.unwrap();
    assert_eq!(names(&list(&below).await.unwrap()), ["%E8%A6%8F.md", "就業 規則.md"]);

    filler.put("a+b&c.txt", "changed");
    filler.tell(&json!(["delete", "gone.txt"]));
    let second = list(&source).await.unwrap();
    let changed: Vec<_> = second.iter().filter(|listed| !first.contains(listed)).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(text(&source, changed[0]).await.unwrap(), "changed");
    assert_eq!(second.len(), first.len() - 1);
    assert_eq!(azurite.downloads("/a+b&c.txt?"), odd.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_cannot_be_had_says_why_and_leaves_the_others_alone() {
    let Some(azurite) = Azurite::start(None) else { return };
    let Some(mut filler) = Filler::start(&azurite, "docs", None) else { return };
    for name in ["1 archived", "2 changed", "3 gone", "4 large", "5 well.pdf"] {
        filler.put(name, name);
    }
    filler.put("4 large", &"x".repeat(LIMIT as usize + 1));
    filler.put("6 empty", "");
    filler.tell(&json!(["archive", "1 archived"]));
    let settings = emulator(&format!("?{}", filler.sas("rl", 1)));
    let source = DocumentSource::open(&azurite.container("docs"), &settings).await.unwrap();
    let found = list(&source).await.unwrap();
    filler.put("2 changed", "to this");
    filler.tell(&json!(["delete", "3 gone"]));
    let mut had = Vec::new();
    for listed in &found {
        had.push(text(&source, listed).await);
    }
    assert!(matches!(had[0], Err(DocumentSourceError::Archived)), "{:?}", had[0]);
    assert!(matches!(had[1], Err(DocumentSourceError::Changed)), "{:?}", had[1]);
    assert!(matches!(had[2], Err(DocumentSourceError::Vanished)), "{:?}", had[2]);
    assert!(matches!(had[3], Err(DocumentSourceError::TooLarge { .. })), "{:?}", had[3]);
    assert_eq!(had[4].as_ref().unwrap(), "5 well.pdf");
    assert_eq!(had[5].as_ref().unwrap(), "");
    assert!(had[..4].iter().all(|had| had.as_ref().unwrap_err().is_document_error()));
    let scratch = tempfile::tempdir().unwrap();
    let fetched = source.fetch(&found[4], LIMIT, scratch.path()).await.unwrap();
    assert_eq!(fetched.extension().unwrap(), "pdf", "readers go by it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_service_refuses_is_told_with_its_mend_and_without_the_signature() {
    secrets::watch();
    let Some(azurite) = Azurite::start(None) else { return };
    let Some(mut filler) = Filler::start(&azurite, "docs", None) else { return };
    filler.put("a.txt", "a");
    let (well, ended) = (filler.sas("rl", 1), filler.sas("rl", -1));
    let read_only = filler.sas("r", 1);
    let url = azurite.container("docs");
    let nobody = BlobSettings { emulator: true, ..BlobSettings::default() };
    for (url, settings, said) in [
        (&url, nobody, "documents.credential"),
        (&url, emulator(&read_only), "sp=rl"),
        (&url, emulator(&ended), "SAS"),
        (&url, emulator(&well.replace("sig=", "sig=x")), "SAS"),
        (&azurite.container("other"), emulator(&well), "SAS"),
    ] {
        let source = DocumentSource::open(url, &settings).await.unwrap();
        let error = list(&source).await.unwrap_err();
        assert!(matches!(error, DocumentSourceError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{said}: {error}");
        secrets::check(&format!("{error} {error:?}"));
    }

    let proxy = Proxy::start(Some(azurite.url["http://".len()..].parse().unwrap())).await;
    let place = Place::new();
    place.write("promptmill.toml", "[documents]\nemulator = true\n");
    let check = |url: &str, sas: &str| {
        let mut command = place.command(&["check", "--json"]);
        command.env("PROMPTMILL__DOCUMENTS__SOURCE", url).env("PROMPTMILL__DOCUMENTS__SAS", sas);
        command.env("HTTP_PROXY", proxy.url()).env_remove("NO_PROXY").env_remove("no_proxy");
        Ended::from(command.output().unwrap())
    };
    let named = "http://blobs.example/devstoreaccount1/docs";
    let ended = tokio::task::block_in_place(|| check(named, &well));
    assert_eq!(ended.code, Some(0), "{} {}", ended.out, ended.err);
    assert!(ended.out.contains("documents at http://blobs.example"), "{}", ended.out);
    assert!(proxy.passed() > 0);
    let ended = tokio::task::block_in_place(|| check(named, &read_only));
    assert_eq!(ended.code, Some(3), "{} {}", ended.out, ended.err);
    assert!(ended.out.contains("sp=rl"), "{}", ended.out);
}

/// The identity endpoint of Container Apps, with a token as Entra ID's for Blob Storage looks; nobody
/// checks its signature.
async fn identity_endpoint() -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({
        "aud": "https://storage.azure.com", "iss": "https://sts.windows.net/tenant/",
        "iat": now - 60, "nbf": now - 60, "exp": now + 3_600,
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let token = format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256"})), part(&claims));
    let answer = json!({
        "access_token": token, "expires_on": (now + 3_600).to_string(), "token_type": "Bearer",
        "resource": "https://storage.azure.com",
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/msi/token", listener.local_addr().unwrap());
    let get = axum::routing::get(move |query: axum::extract::RawQuery| async move {
        assert!(query.0.unwrap().contains("resource=https%3A%2F%2Fstorage.azure.com"));
        answer.to_string()
    });
    let app = axum::Router::new().route("/msi/token", get);
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_identity_reads_a_container_over_tls() {
    let place = Place::new();
    certificates::make(&place.path(""));
    let Some(azurite) = Azurite::start(Some(&place.path(""))) else { return };
    let Some(mut filler) = Filler::start(&azurite, "docs", Some(&place.path("ca.pem"))) else {
        return;
    };
    filler.put("a.txt", "a");
    let check = |container: &str, endpoint: &str| {
        let url = azurite.container(container);
        let text = format!(
            "[documents]\nsource = \"{url}\"\nemulator = true\ncredential = {{ managed_identity = {{}} }}\n"
        );
        place.write("promptmill.toml", text);
        let mut command = place.command(&["check", "--json"]);
        command.env("IDENTITY_ENDPOINT", endpoint).env("IDENTITY_HEADER", "header-secret");
        command.env("SSL_CERT_FILE", place.path("ca.pem"));
        Ended::from(tokio::task::block_in_place(|| command.output().unwrap()))
    };
    let endpoint = identity_endpoint().await;
    let ended = check("docs", &endpoint);
    assert_eq!(ended.code, Some(0), "{} {}", ended.out, ended.err);
    let ended = check("nothing", &endpoint);
    assert_eq!(ended.code, Some(3), "{} {}", ended.out, ended.err);
    assert!(ended.out.contains("container's name"), "{}", ended.out);
}

/// Answers each request with the next of these and closes; ends with what was asked.
async fn scripted(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/account/docs", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert_ne!(client.read_buf(&mut head).await.unwrap(), 0);
            }
            asked.push(String::from_utf8(head).unwrap());
            client.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (url, serving)
}

fn answer(status: &str, length: usize, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// A page of a listing, with what the service has for each blob.
fn page(blobs: &str, next: &str) -> String {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults ServiceEndpoint=\"https://a/\" \
         ContainerName=\"docs\"><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker>\
         </EnumerationResults>"
    );
    answer("200 OK", body.len(), &body)
}

fn blob(name: &str, more: &str) -> String {
    format!(
        "<Blob><Name>{name}</Name>{more}<Properties><Etag>0x8DE</Etag><Content-Length>10\
         </Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )
}

async fn open(url: &str) -> DocumentSource {
    DocumentSource::open(url, &emulator("sv=2026&sig=s3cret")).await.unwrap()
}

#[tokio::test]
async fn a_busy_service_is_asked_again_and_a_broken_download_done_again() {
    secrets::watch();
    let whole = "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/10\r\nContent-Length: 10\r\n\
                 Connection: close\r\n\r\n0123456789";
    let half = whole.replace("0123456789", "01234");
    let busy = answer("503 Busy", 0, "");
    let one = page(&blob("a.txt", ""), "");
    let (url, serving) = scripted(vec![busy, one, half, whole.into()]).await;
    let source = open(&url).await;
    let found = list(&source).await.unwrap();
    assert_eq!(text(&source, &found[0]).await.unwrap(), "0123456789");
    let asked = serving.await.unwrap();
    assert!(asked[3].to_lowercase().contains("if-match: \"0x8de\""), "{}", asked[3]);
}

#[tokio::test]
async fn a_service_that_stays_away_is_given_up_and_the_url_is_not_told() {
    let (url, serving) = scripted(vec![answer("500 Broken", 0, ""); 5]).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nobody = open(&format!("http://{closed}/account/docs")).await;
    let broken = open(&url).await;
    let (broken, away) = tokio::join!(list(&broken), list(&nobody));
    assert_eq!(serving.await.unwrap().len(), 5);
    for (error, said) in [(broken.unwrap_err(), "500"), (away.unwrap_err(), "refused")] {
        assert!(error.is_transient() && !error.is_document_error(), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
        secrets::check(&format!("{error} {error:?}"));
    }
}

#[tokio::test]
async fn only_what_is_there_now_counts_as_a_document() {
    let pages = vec![
        page(&(blob("b.txt", "") + &blob("old.txt", "<Snapshot>2026-01-01</Snapshot>")), "more"),
        // The service may have nothing to say for a while.
        page("", "and more"),
        page(
            &(blob("gone.txt", "<Deleted>true</Deleted>")
                + &blob("was.txt", "<IsCurrentVersion>false</IsCurrentVersion>")
                + &blob(
                    "a.txt",
                    "<VersionId>1</VersionId><IsCurrentVersion>true</IsCurrentVersion>",
                )
                + "<Blob><Name Encoded=\"true\">c%EF%BF%BE.txt</Name><Properties><Etag>1</Etag>\
                   <Content-Length>0</Content-Length></Properties></Blob>"),
            "",
        ),
    ];
    let (url, serving) = scripted(pages).await;
    let found = list(&open(&url).await).await.unwrap();
    assert_eq!(names(&found), ["a.txt", "b.txt", "c\u{fffe}.txt"]);
    assert!(serving.await.unwrap()[2].contains("marker=and"));
}

#[tokio::test]
async fn a_page_for_people_in_place_of_a_listing_is_told() {
    let page = "<html><body>Sign in to the guest network</body></html>";
    let (url, _serving) = scripted(vec![answer("200 OK", page.len(), page)]).await;
    let error = list(&open(&url).await).await.unwrap_err();
    assert!(matches!(error, DocumentSourceError::InvalidResponse(_)), "{error:?}");
}

#[tokio::test]
async fn a_folder_is_a_source_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("b.md"), "b").unwrap();
    std::fs::write(folder.path().join("a.txt"), "a").unwrap();
    let given = folder.path().to_str().unwrap();
    let source = DocumentSource::open(given, &BlobSettings::default()).await.unwrap();
    assert!(!source.has_reliable_versions());
    let found = source.list(&["**/*".into()], &["*.md".into()]).await.unwrap();
    assert_eq!(names(&found), ["a.txt"]);
    let fetched = source.fetch(&found[0], LIMIT, Path::new("not needed")).await.unwrap();
    drop(fetched);
    assert!(folder.path().join("a.txt").exists(), "what is theirs stays");
}
