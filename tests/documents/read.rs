//! Documents of every kind are read as what they are, and broken ones are told with their reason,
//! within bounds.
//!
//! `tests/data/documents/make.py` says how the files were made. `PROMPTMILL_TEST_MUTATIONS` sets how
//! many damaged copies of each are tried (1), and `PROMPTMILL_TEST_DOCUMENTS` names a folder of which
//! every file is to be read or refused, and no reader to die.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "a larger run tells what it met")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use promptmill::reader::{Document, DocumentContent, ReadError, ReadLimits, read, read_sandboxed};
use serde_json::{Value, json};
use tempfile::TempDir;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_promptmill"))
}

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/documents").join(name)
}

fn samples() -> Vec<PathBuf> {
    let all = std::fs::read_dir(sample("")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> =
        all.filter(|path| path.extension().is_some_and(|kind| kind != "py")).collect();
    all.sort();
    assert!(all.len() >= 15, "{all:?}");
    all
}

/// A file of these bytes, read under its name.
async fn read_bytes(name: &str, bytes: &[u8], limits: &ReadLimits) -> Result<Document, ReadError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("document");
    std::fs::write(&path, bytes).unwrap();
    read_sandboxed(program(), &path, name, limits).await
}

async fn read_sample(name: &str) -> Result<Document, ReadError> {
    read_sandboxed(program(), &sample(name), name, &ReadLimits::default()).await
}

async fn refused(name: &str, bytes: &[u8], limits: &ReadLimits) -> String {
    let read = read_bytes(name, bytes, limits).await;
    read.expect_err(name).to_string()
}

fn text(document: &Document) -> &str {
    match &document.content {
        DocumentContent::Text { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

fn rows(document: &Document) -> Value {
    match &document.content {
        DocumentContent::Rows(rows) => json!(rows),
        other => panic!("{other:?}"),
    }
}

const FIRST: &str = "文書は毎晩、変わったものだけが処理されます。";
const SECOND: &str = "結果は朝までに表として届きます。";

#[tokio::test]
async fn japanese_pdfs_are_read_whatever_their_fonts() {
    let cid = read_sample("cid.pdf").await.unwrap();
    assert_eq!(
        text(&cid),
        format!(
            "夜間処理の手引き\n{FIRST}\n{SECOND}\n\nOnly what changed is paid for.\n\n\
             二ページ目です。\n"
        )
    );
    assert_eq!(cid.metadata["title"], "夜間処理の手引き");
    assert_eq!(cid.metadata["author"], "試験係");
    assert_eq!(cid.metadata["pages"], 2);
    let embedded = read_sample("embedded.pdf").await.unwrap();
    assert_eq!(text(&embedded), format!("{FIRST}\n{SECOND}\n"));
    let codes = read_sample("shift-jis.pdf").await.unwrap();
    assert_eq!(text(&codes), "請求書番号は千二百三です。\n");
}

#[tokio::test]
async fn a_word_document_keeps_its_headings_lists_and_tables() {
    let report = read_sample("report.docx").await.unwrap();
    assert_eq!(
        report.content,
        DocumentContent::Text {
            text: format!(
                "# 夜間処理の手引き\n\n# はじめに\n\n{FIRST}\n\n## 手順\n\n\
                 1. 取り込む\n2. 割る\n3. 尋ねる\n- とくに大切\n\n\
                 | 品名 | 数量 |\n| --- | --- |\n| りんご | 3 |\n| みかん | 10 |\n\n\
                 \\# no heading & <b>\n"
            ),
            markdown: true,
        }
    );
    assert_eq!(report.metadata["title"], "夜間処理の手引き");
    assert_eq!(report.metadata["author"], "試験係");
}

#[tokio::test]
async fn one_sheet_with_named_columns_is_rows() {
    let stock = read_sample("rows.xlsx").await.unwrap();
    assert_eq!(
        rows(&stock),
        json!([
            {"品名": "りんご", "数量": 3, "入荷日": "2026-03-02", "単価": 120.5},
            {"品名": "みかん", "数量": 10, "入荷日": "2026-03-03 09:30:00", "単価": 40},
            {"品名": "なし", "数量": null, "入荷日": null, "単価": null},
        ])
    );
    assert_eq!(stock.metadata["title"], "在庫表");
    assert_eq!(stock.metadata["sheets"], json!(["在庫"]));
    let old = rows(&read_sample("old.xls").await.unwrap());
    assert_eq!(old, json!([{"品名": "りんご", "数量": 3}, {"品名": "みかん", "数量": 10}]));
    let open = rows(&read_sample("stock.ods").await.unwrap());
    assert_eq!(open[1], json!({"品名": "みかん", "数量": "10"}));
}

#[tokio::test]
async fn other_workbooks_are_a_table_for_each_sheet() {
    let two = read_sample("two.xlsx").await.unwrap();
    assert_eq!(
        text(&two),
        "## 在庫\n\n| 品名 | 数量 | 入荷日 | 単価 |\n| --- | --- | --- | --- |\n\
         | りんご | 3 | 2026-03-02 | 120.5 |\n| みかん | 10 | 2026-03-03 09:30:00 | 40 |\n\
         | なし |  |  |  |\n\n## メモ\n\n| 自由な記述 |  |\n| --- | --- |\n|  | true |\n"
    );
    // Its two cells span seventeen billion.
    let far = read_sample("far.xlsx").await.unwrap();
    assert!(text(&far).contains("and there"));
}

#[tokio::test]
async fn a_presentation_is_its_slides_in_order() {
    let deck = read_sample("deck.pptx").await.unwrap();
    assert_eq!(
        text(&deck),
        "# 月例報告\n\n- 売上は増えた\n  - とくに西日本\n\nNotes: 質問に備える\n\n# 数字\n\n\
         | 品名 | 数量 |\n| --- | --- |\n| りんご | 3 |\n| みかん | 10 |\n\n速報値\n"
    );
    assert_eq!(deck.metadata["slides"], 2);
}

#[tokio::test]
async fn mail_is_read_with_who_wrote_what_to_whom() {
    let japanese = read_sample("iso-2022-jp.eml").await.unwrap();
    assert_eq!(
        text(&japanese),
        "Subject: 請求書の件\nFrom: 山田 <yamada@example.jp>\nTo: suzuki@example.jp\n\
         Date: 2026-03-02T09:00:00+09:00\n\nお世話になっております。\n請求書をお送りします。\n"
    );
    let attached = read_sample("attachment.eml").await.unwrap();
    assert!(text(&attached).ends_with("\n\nThe figures are attached.\n"), "{}", text(&attached));
    assert_eq!(attached.metadata["attachments"], json!(["figures.csv"]));
    assert_eq!(attached.metadata["to"], "Bob <bob@example.org>, carol@example.org");
}

#[tokio::test]
async fn pages_rows_and_images_are_read_too() {
    for name in ["shift-jis.html", "euc-jp.html"] {
        let page = read_sample(name).await.unwrap();
        let is = format!("# 夜間処理の手引き\n\n{FIRST}\n\n## 手順\n\n1. 取り込む\n2. 割る\n");
        assert_eq!(page.content, DocumentContent::Text { text: is, markdown: true }, "{name}");
    }
    let table = rows(&read_sample("shift-jis.csv").await.unwrap());
    assert_eq!(table[0], json!({"品名": "りんご", "数量": "3", "備考": "赤, 甘い"}));
    let image = read_sample("white.png").await.unwrap();
    let bytes = std::fs::read(sample("white.png")).unwrap().into();
    assert_eq!(image.content, DocumentContent::Image { media_type: "image/png".into(), bytes });
    let again: Document = serde_json::from_value(json!(image)).unwrap();
    assert_eq!(again, image);
}

#[tokio::test]
async fn a_wrong_name_is_noted_or_refused() {
    let limits = ReadLimits::default();
    let cid = std::fs::read(sample("cid.pdf")).unwrap();
    let named = read_bytes("manual.docx", &cid, &limits).await.unwrap();
    assert_eq!(named.metadata["kind"], "pdf");
    assert_eq!(named.metadata["note"], "named .docx, but read as the pdf that it is");
    let page = b"<!DOCTYPE html><title>Sign in</title>";
    let told = refused("invoice.pdf", page, &limits).await;
    assert!(told.contains("named .pdf but is an HTML page"), "{told}");
    for name in ["a.pdf", "a.docx", "a.xlsx", "a.xls", "a.pptx", "a.png"] {
        let told = refused(name, b"\x01\x02\x03 garbage \xff\xfe\0\0", &limits).await;
        assert!(told.starts_with("named ."), "{name}: {told}");
    }
    for name in ["a.txt", "a.html", "a.csv", "a.tsv", "a.jsonl", "a.eml", "a"] {
        refused(name, b"\x01\x02\x03 garbage \xff\xfe\0\0", &limits).await;
    }
}

#[tokio::test]
async fn protected_cut_and_empty_files_say_so() {
    let limits = ReadLimits::default();
    for name in ["protected.pdf", "protected.xlsx"] {
        let told = read_sample(name).await.unwrap_err().to_string();
        assert!(told.contains("protected by a password"), "{name}: {told}");
    }
    let told = read_sample("scanned.pdf").await.unwrap_err().to_string();
    assert!(told.contains("OCR"), "{told}");
    for name in ["cid.pdf", "embedded.pdf", "report.docx", "deck.pptx", "rows.xlsx", "old.xls"] {
        let whole = std::fs::read(sample(name)).unwrap();
        for part in [whole.len() / 2, whole.len() * 9 / 10] {
            let told = refused(name, &whole[..part], &limits).await;
            assert!(told.contains("broken or cut off"), "{name}: {told}");
        }
        assert_eq!(refused(name, b"", &limits).await, "holds no text");
    }
    assert_eq!(refused("a.html", b"<p> <br>", &limits).await, "holds no text");
    let pictures = b"<presentation><sldIdLst/></presentation>";
    let pictures = office("ppt/presentation.xml", pictures);
    assert_eq!(refused("pictures.pptx", &pictures, &limits).await, "holds no text");
    let told = refused("a.csv", "名,値\n1,2\n1,2,3\n".as_bytes(), &limits).await;
    assert!(told.contains("line 3 has 3 cells"), "{told}");
    let told = refused("a.jsonl", b"{}\nno\n", &limits).await;
    assert!(told.contains("line 2"), "{told}");
    // Half of a character that takes two units of UTF-16.
    let told = refused("a.txt", b"\xff\xfe\x00\xd8a\0", &limits).await;
    assert!(told.contains("save it as UTF-8"), "{told}");
}

/// An office file whose main part is this.
fn office(part: &str, content: &[u8]) -> Vec<u8> {
    let mut package = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    package.start_file("_rels/.rels", options).unwrap();
    let link = format!(
        r#"<Relationships><Relationship Id="1" Type="x/officeDocument" Target="{part}"/>
        </Relationships>"#
    );
    package.write_all(link.as_bytes()).unwrap();
    package.start_file(part, options).unwrap();
    package.write_all(content).unwrap();
    package.finish().unwrap().into_inner()
}

fn word(text: &[u8]) -> Vec<u8> {
    office("word/document.xml", text)
}

#[tokio::test]
async fn bombs_are_refused_before_they_go_off() {
    let limits = ReadLimits { unpacked_bytes: 1 << 20, ..ReadLimits::default() };
    let mut bomb = word(&vec![b' '; 4 << 20]);
    assert!(bomb.len() < 16 << 10, "{}", bomb.len());
    let told = refused("bomb.docx", &bomb, &limits).await;
    assert!(told.contains("unpacks to more than 1 MiB"), "{told}");
    // The directory lies: it says that the text is small.
    let size = u32::to_le_bytes(4 << 20);
    while let Some(at) = bomb.windows(4).position(|bytes| bytes == size) {
        bomb[at..at + 4].copy_from_slice(&u32::to_le_bytes(1000));
    }
    let told = refused("bomb.docx", &bomb, &limits).await;
    assert!(told.contains("unpacks to") || told.contains("broken"), "{told}");
    for (name, part) in [("a.xlsx", "xl/workbook.xml"), ("a.pptx", "ppt/presentation.xml")] {
        let told = refused(name, &office(part, &vec![b' '; 4 << 20]), &limits).await;
        assert!(told.contains("unpacks to more than 1 MiB"), "{name}: {told}");
    }

    let laughs = r#"<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
        <document><p><t>&b;</t></p></document>"#;
    let told = refused("laughs.docx", &word(laughs.as_bytes()), &limits).await;
    assert!(told.contains("entities"), "{told}");
    let told = refused("a.docx", &word(b"<document><p><t>&b;</t></p></document>"), &limits).await;
    assert!(told.contains("&b;"), "{told}");
}

#[tokio::test]
async fn a_huge_file_is_refused_unread() {
    let folder = TempDir::new().unwrap();
    for name in ["huge.txt", "huge.pdf", "huge.csv"] {
        let path = folder.path().join(name);
        // It takes no room on the disk.
        std::fs::File::create(&path).unwrap().set_len(200 << 20).unwrap();
        let told =
            read_sandboxed(program(), &path, name, &ReadLimits::default()).await.unwrap_err();
        assert!(matches!(told, ReadError::TooLarge { limit } if limit == 32 << 20), "{told}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_reader_gets_no_more_memory_than_it_may_have() {
    let page = "<p>text</p>".repeat(2 << 20).into_bytes();
    let limits = ReadLimits { memory_bytes: 40 << 20, ..ReadLimits::default() };
    assert!(page.len() > 20 << 20 && (page.len() as u64) < limits.file_bytes);
    let told = read_bytes("large.html", &page, &limits).await.unwrap_err();
    assert!(matches!(told, ReadError::TooMuchMemory { limit } if limit == 40 << 20), "{told}");
}

/// A PDF of one page, whose program is this, packed.
fn page(program: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(program).unwrap();
    let packed = packed.finish().unwrap();
    let head = format!(
        "%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n\
         2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n\
         3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<<\
         /Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>>>endobj\n\
         4 0 obj<</Length {}/Filter/FlateDecode>>stream\n",
        packed.len()
    );
    let end = "\nendstream endobj\ntrailer<</Root 1 0 R>>\nstartxref\n0\n%%EOF\n";
    [head.as_bytes(), &packed, end.as_bytes()].concat()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_pdf_that_unpacks_to_more_than_its_reader_may_have_is_told() {
    let limits = ReadLimits { memory_bytes: 24 << 20, ..ReadLimits::default() };
    let small = page(b"BT /F 12 Tf 72 700 Td (Night) Tj ET");
    assert_eq!(text(&read_bytes("small.pdf", &small, &limits).await.unwrap()), "Night\n");
    let bomb = page(&vec![b' '; 32 << 20]);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let told = read_bytes("bomb.pdf", &bomb, &limits).await.unwrap_err();
    assert!(matches!(told, ReadError::TooMuchMemory { limit } if limit == 24 << 20), "{told}");
}

#[tokio::test]
async fn deep_nesting_is_read_in_a_line() {
    let limits = ReadLimits::default();
    let page = "<div><table><tr><td><ul><li>".repeat(10_000) + "end";
    let read = read_bytes("deep.html", page.as_bytes(), &limits).await.unwrap();
    assert!(text(&read).contains("end"));
    let deep = 20_000;
    let body = format!(
        "<document>{}<p><t>end</t></p>{}</document>",
        "<tbl><tr><tc>".repeat(deep),
        "</tc></tr></tbl>".repeat(deep)
    );
    let read = read_bytes("deep.docx", &word(body.as_bytes()), &limits).await.unwrap();
    assert_eq!(text(&read), "end\n");
}

/// A program that does this instead of reading.
#[cfg(unix)]
fn instead(folder: &TempDir, does: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.path().join("reader");
    std::fs::write(&path, format!("#!/bin/sh\n{does}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[tokio::test]
async fn whatever_a_reader_does_costs_its_document_alone() {
    let folder = TempDir::new().unwrap();
    let limits =
        ReadLimits { time: Duration::from_millis(500), text_bytes: 1000, ..ReadLimits::default() };
    let patient = ReadLimits { time: Duration::from_secs(30), ..limits.clone() };
    let cases: [(&str, &ReadLimits, &str); 6] = [
        ("exec /bin/sleep 600", &limits, "took longer than 0.5 s"),
        ("while :; do echo more; done", &patient, "more than 1000 bytes of text"),
        ("kill -SEGV $$", &patient, "its reader died (signal: 11"),
        (
            "echo \"thread 'main' panicked at x.rs:1:\" >&2; echo oh no >&2; exit 101",
            &patient,
            "its reader died (exit status: 101: oh no)",
        ),
        (
            "echo memory allocation of 9 bytes failed >&2; kill -ABRT $$",
            &patient,
            "took more than 1024 MiB of memory",
        ),
        ("echo '{}'", &patient, "its answer makes no sense"),
    ];
    for (does, limits, said) in cases {
        let program = instead(&folder, does);
        let told =
            read_sandboxed(&program, &sample("cid.pdf"), "cid.pdf", limits).await.unwrap_err();
        assert!(told.to_string().contains(said), "{does}: {told}");
    }
    let gone = folder.path().join("gone");
    let told = read_sandboxed(&gone, &sample("cid.pdf"), "cid.pdf", &limits).await.unwrap_err();
    assert!(matches!(told, ReadError::Start(_)), "{told}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_reader_gets_no_keys() {
    let folder = TempDir::new().unwrap();
    let program = instead(&folder, "/usr/bin/env >&2; exit 1");
    let told =
        read_sandboxed(&program, &sample("cid.pdf"), "cid.pdf", &ReadLimits::default()).await;
    let told = told.unwrap_err().to_string();
    // Its shell sets these itself.
    assert!(told.contains("PWD=") && !told.contains("CARGO"), "{told}");
}

/// How many tries a variable asks for.
fn asked(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

#[tokio::test]
async fn damaged_documents_cost_no_more_than_their_limits() {
    let limits = ReadLimits { time: Duration::from_secs(20), ..ReadLimits::default() };
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % below
    };
    for path in samples() {
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for n in 0..asked("PROMPTMILL_TEST_MUTATIONS", 1) {
            let mut damaged = whole.clone();
            for _ in 0..1 + next(8) {
                let at = next(damaged.len());
                match next(3) {
                    0 => damaged[at] ^= 1 << next(8),
                    1 => drop(damaged.splice(
                        at..at,
                        whole[at.min(whole.len()) / 2..at.min(whole.len())].iter().copied(),
                    )),
                    _ => drop(damaged.drain(at..(at + next(64)).min(damaged.len()))),
                }
                if damaged.is_empty() {
                    break;
                }
            }
            let read = read_bytes(&name, &damaged, &limits);
            // What is asked for is an end in time; that a reader may die is what it is apart for.
            let read = tokio::time::timeout(limits.time * 2, read).await.expect(&name);
            if let Err(ReadError::Died { how }) = &read {
                println!("{name} {n}: {how}");
            }
            assert!(!matches!(read, Err(ReadError::TooSlow { .. })), "{name} {n}");
        }
    }
}

#[tokio::test]
async fn every_file_of_a_folder_is_read_or_refused() {
    let folder = std::env::var_os("PROMPTMILL_TEST_DOCUMENTS").map_or(sample(""), PathBuf::from);
    let mut folders = vec![folder];
    let (mut done, mut failed) = (0, 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.to_string_lossy().into_owned();
            match read_sandboxed(program(), &path, &name, &ReadLimits::default()).await {
                Ok(_) => done += 1,
                Err(error @ (ReadError::Died { .. } | ReadError::Start(_))) => {
                    panic!("{name}: {error}")
                }
                Err(error) => {
                    failed += 1;
                    println!("{name}: {error}");
                }
            }
        }
    }
    println!("{done} read, {failed} refused");
    assert!(done >= 10, "{done} read, {failed} refused");
}

#[test]
fn reading_in_this_process_gives_the_same() {
    let name = "report.docx";
    let document = read(&sample(name), name, &ReadLimits::default()).unwrap();
    assert!(text(&document).starts_with("# 夜間処理の手引き\n"));
}
