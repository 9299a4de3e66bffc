//! Presentations: each slide a heading with its texts, tables and notes, in their order.
//!
//! Charts and diagrams have their texts elsewhere and are not read.

use super::markdown::{Markdown, one_line};
use super::package::Package;
use super::xml::{Node, Nodes, attribute, relationship};
use super::{Document, Limits, ReadError};

const KIND: &str = "PPTX";

/// Reads a presentation that is listed in the part `main`.
///
/// # Errors
/// If a part is broken, or there is no text or too much.
pub(super) fn read(
    mut package: Package,
    main: &str,
    limits: &Limits,
) -> Result<Document, ReadError> {
    let parts = package.relationships(main)?;
    let list = package.part(main)?.unwrap_or_default();
    let mut nodes = Nodes::new(&list, KIND);
    let mut out = Markdown::new(limits.text_bytes);
    let mut slides = 0_u64;
    let mut says_something = false;
    while let Some(node) = nodes.next()? {
        let Node::Start(start) = node else { continue };
        if start.local_name().as_ref() != "sldId" {
            continue;
        }
        let part = relationship(&start).and_then(|id| parts.get(&id));
        let missing = || ReadError::broken(KIND, "a slide is missing");
        slides += 1;
        says_something |= slide(&mut package, &part.ok_or_else(missing)?.part, slides, &mut out)?;
    }
    // Pictures alone would leave the headings that stand in for titles.
    if !says_something {
        return Err(ReadError::Empty);
    }
    let mut document = Document::text("pptx", out.finish()?, true);
    document.tell("slides", slides);
    package.about(&mut document)?;
    Ok(document)
}

/// Writes a slide, and says whether it has any text.
fn slide(
    package: &mut Package,
    part: &str,
    number: u64,
    out: &mut Markdown,
) -> Result<bool, ReadError> {
    let text = package.part(part)?.unwrap_or_default();
    let shapes = shapes(&text)?;
    let title = shapes.iter().find(|shape| shape.is_title()).map(Shape::line);
    let title = title.filter(|title| !title.is_empty());
    let mut says_something = title.is_some();
    out.heading(1, &title.unwrap_or_else(|| format!("Slide {number}")))?;
    for shape in shapes.iter().filter(|shape| !shape.is_title() && !shape.is_frame()) {
        says_something |= !shape.rows.is_empty() || !shape.line().is_empty();
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
            notes.iter().filter(|shape| shape.is_body()).map(Shape::line).collect();
        let notes = notes.join(" ");
        if !notes.trim().is_empty() {
            says_something = true;
            out.paragraph(&format!("Notes: {notes}"))?;
        }
    }
    Ok(says_something)
}

/// A text box, placeholder or table.
#[derive(Debug, Default)]
struct Shape {
    /// What it is the place for; none for free text boxes.
    placeholder: Option<String>,
    /// With how deep each is indented.
    paragraphs: Vec<(usize, String)>,
    rows: Vec<Vec<String>>,
}

impl Shape {
    fn is(&self, kinds: &[&str]) -> bool {
        self.placeholder.as_deref().is_some_and(|kind| kinds.contains(&kind))
    }

    fn is_title(&self) -> bool {
        self.is(&["title", "ctrTitle"])
    }

    /// What stands on every slide: its number, the date, a footer.
    fn is_frame(&self) -> bool {
        self.is(&["sldNum", "dt", "ftr", "hdr"])
    }

    /// A placeholder without a type is one for any content (ECMA-376, `ST_PlaceholderType`).
    fn is_body(&self) -> bool {
        self.is(&["body", "obj"])
    }

    fn line(&self) -> String {
        let texts: Vec<&str> = self.paragraphs.iter().map(|(_, text)| text.as_str()).collect();
        one_line(&texts.join("\n"))
    }
}

fn shapes(text: &str) -> Result<Vec<Shape>, ReadError> {
    let mut nodes = Nodes::new(text, KIND);
    let mut shapes = Vec::new();
    let mut shape = Shape::default();
    let mut paragraph = (0, String::new());
    let (mut in_text, mut in_cell, mut hidden) = (false, false, 0_usize);
    while let Some(node) = nodes.next()? {
        match node {
            Node::Start(start) => match start.local_name().as_ref() {
                // `Fallback` repeats what stands beside it for older programs.
                "Fallback" => hidden += 1,
                _ if hidden > 0 => {}
                "sp" | "graphicFrame" => shape = Shape::default(),
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
            Node::Text(text) if in_text && hidden == 0 => paragraph.1.push_str(&text),
            Node::Text(_) => {}
            Node::End(name) => match name.as_str() {
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
