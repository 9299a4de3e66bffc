//! Presentations: each slide a heading with its texts, tables and notes, in their order.
//!
//! Charts and diagrams have their texts elsewhere and are not read.

use super::markdown::{MarkdownWriter, one_line};
use super::package::OfficePackage;
use super::xml::{XmlNode, XmlNodes, attribute, relationship};
use super::{Document, ReadError, ReadLimits};

const KIND: &str = "PPTX";

/// Reads a presentation whose slides are listed in the part `main`.
///
/// # Errors
/// If a part is broken, or there is no text or too much.
pub(super) fn read(
    mut package: OfficePackage,
    main: &str,
    limits: &ReadLimits,
) -> Result<Document, ReadError> {
    let parts = package.relationships(main)?;
    let list = package.part(main)?.unwrap_or_default();
    let mut nodes = XmlNodes::new(&list, KIND);
    let mut out = MarkdownWriter::new(limits.text_bytes);
    let mut slides = 0_u64;
    let mut has_text = false;
    while let Some(node) = nodes.next()? {
        let XmlNode::Start(start) = node else { continue };
        if start.local_name().as_ref() != "sldId" {
            continue;
        }
        let part = relationship(&start).and_then(|id| parts.get(&id));
        let missing = || ReadError::broken(KIND, "a slide is missing");
        slides += 1;
        has_text |= slide(&mut package, &part.ok_or_else(missing)?.part, slides, &mut out)?;
    }
    // Pictures alone would leave only the stand-in headings.
    if !has_text {
        return Err(ReadError::Empty);
    }
    let mut document = Document::text("pptx", out.finish()?, true);
    document.set_metadata("slides", slides);
    package.read_properties(&mut document)?;
    Ok(document)
}

/// Writes a slide; returns true if it has any text.
fn slide(
    package: &mut OfficePackage,
    part: &str,
    number: u64,
    out: &mut MarkdownWriter,
) -> Result<bool, ReadError> {
    let text = package.part(part)?.unwrap_or_default();
    let shapes = shapes(&text)?;
    let title = shapes.iter().find(|shape| shape.is_title()).map(SlideShape::line);
    let title = title.filter(|title| !title.is_empty());
    let mut has_text = title.is_some();
    out.heading(1, &title.unwrap_or_else(|| format!("Slide {number}")))?;
    for shape in shapes.iter().filter(|shape| !shape.is_title() && !shape.is_header_or_footer()) {
        has_text |= !shape.rows.is_empty() || !shape.line().is_empty();
        out.table(&shape.rows)?;
        for (depth, text) in &shape.paragraphs {
            match shape.is_body() {
                true => out.item(depth + 1, "-", text)?,
                false => out.paragraph(text)?,
            }
        }
    }
    let links = package.relationships(part)?;
    if let Some(notes) = links.values().find(|one| one.kind == "notesSlide") {
        let text = package.part(&notes.part)?.unwrap_or_default();
        let notes = self::shapes(&text)?;
        let notes: Vec<String> =
            notes.iter().filter(|shape| shape.is_body()).map(SlideShape::line).collect();
        let notes = notes.join(" ");
        if !notes.trim().is_empty() {
            has_text = true;
            out.paragraph(&format!("Notes: {notes}"))?;
        }
    }
    Ok(has_text)
}

/// A text box, placeholder or table.
#[derive(Debug, Default)]
struct SlideShape {
    /// Type of its placeholder; `None` for free text boxes.
    placeholder: Option<String>,
    /// Paragraphs with their indentation.
    paragraphs: Vec<(usize, String)>,
    rows: Vec<Vec<String>>,
}

impl SlideShape {
    fn is(&self, kinds: &[&str]) -> bool {
        self.placeholder.as_deref().is_some_and(|kind| kinds.contains(&kind))
    }

    fn is_title(&self) -> bool {
        self.is(&["title", "ctrTitle"])
    }

    /// Returns true for what is on every slide: its number, the date, a header or footer.
    fn is_header_or_footer(&self) -> bool {
        self.is(&["sldNum", "dt", "ftr", "hdr"])
    }

    /// Matches a placeholder without a type too: any content (ECMA-376, `ST_PlaceholderType`).
    fn is_body(&self) -> bool {
        self.is(&["body", "obj"])
    }

    fn line(&self) -> String {
        let texts: Vec<&str> = self.paragraphs.iter().map(|(_, text)| text.as_str()).collect();
        one_line(&texts.join("\n"))
    }
}

fn shapes(text: &str) -> Result<Vec<SlideShape>, ReadError> {
    let mut nodes = XmlNodes::new(text, KIND);
    let mut shapes = Vec::new();
    let mut shape = SlideShape::default();
    let mut paragraph = (0, String::new());
    let (mut in_text, mut in_cell, mut hidden) = (false, false, 0_usize);
    while let Some(node) = nodes.next()? {
        match node {
            XmlNode::Start(start) => match start.local_name().as_ref() {
                // `Fallback` repeats what stands beside it for older programs.
                "Fallback" => hidden += 1,
                _ if hidden > 0 => {}
                "sp" | "graphicFrame" => shape = SlideShape::default(),
                "ph" => {
                    let kind = attribute(&start, "type").unwrap_or_else(|| "obj".into());
                    shape.placeholder = Some(kind);
                }
                "tr" => shape.rows.push(Vec::new()),
                "tc" => {
                    in_cell = true;
                    shape.rows.last_mut().into_iter().for_each(|row| row.push(String::new()));
                }
                "p" => paragraph = (0, String::new()),
                "pPr" => {
                    let depth = attribute(&start, "lvl").and_then(|depth| depth.parse().ok());
                    paragraph.0 = depth.unwrap_or(0);
                }
                "t" => in_text = true,
                "br" => paragraph.1.push('\n'),
                "tab" => paragraph.1.push('\t'),
                _ => {}
            },
            XmlNode::Text(text) if in_text && hidden == 0 => paragraph.1.push_str(&text),
            XmlNode::Text(_) => {}
            XmlNode::End(name) => match name.as_str() {
                "Fallback" => hidden = hidden.saturating_sub(1),
                _ if hidden > 0 => {}
                "t" => in_text = false,
                "tc" => in_cell = false,
                "p" => {
                    let ended = std::mem::take(&mut paragraph);
                    match shape.rows.last_mut().and_then(|row| row.last_mut()) {
                        Some(cell) if in_cell => {
                            cell.push(' ');
                            cell.push_str(&ended.1);
                        }
                        _ => shape.paragraphs.push(ended),
                    }
                }
                "sp" | "graphicFrame" => shapes.push(std::mem::take(&mut shape)),
                _ => {}
            },
        }
    }
    Ok(shapes)
}
