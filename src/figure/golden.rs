//! What every figure's test asks: the golden bytes, legible text, nothing that overlaps or sticks out.

use crate::artifact::Figure;
use resvg::usvg;
use std::path::Path;

/// Compares with `tests/golden/figures/<name>.svg`, which `UPDATE_GOLDEN=1` rewrites, and checks the figure's texts.
/// `FIGURES=<directory>` keeps the PNG there, to be looked at.
pub(crate) fn check(name: &str, figure: &Figure) {
    if let Some(dir) = std::env::var_os("FIGURES") {
        std::fs::write(Path::new(&dir).join(format!("{name}.png")), &figure.png).unwrap();
    }
    check_texts(name, figure);
    assert_eq!(super::raster::png(&figure.svg).unwrap(), figure.png, "{name}: the PNG differs when rendered again");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/figures").join(format!("{name}.svg"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &figure.svg).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == figure.svg, "{} differs; UPDATE_GOLDEN=1 rewrites it", path.display());
}

/// Every text is a `<text>` that the renderer lays out, lies on the paper, and touches no other text.
fn check_texts(name: &str, figure: &Figure) {
    let tree = super::raster::parse(&figure.svg).unwrap();
    let mut boxes = Vec::new();
    collect(tree.root(), &mut boxes);
    assert_eq!(boxes.len(), figure.svg.matches("<text ").count(), "{name}: texts that were not laid out");
    let (width, height) = (tree.size().width(), tree.size().height());
    for (i, (text, a)) in boxes.iter().enumerate() {
        let inside = a.left() >= 0.0 && a.top() >= 0.0 && a.right() <= width && a.bottom() <= height;
        assert!(inside, "{name}: `{text}` sticks out of {width} x {height}: {a:?}");
        for (other, b) in &boxes[i + 1..] {
            let apart =
                a.right() <= b.left() || b.right() <= a.left() || a.bottom() <= b.top() || b.bottom() <= a.top();
            assert!(apart, "{name}: `{text}` and `{other}` overlap: {a:?} {b:?}");
        }
    }
}

/// The drawn outlines of all texts, in SVG pixels.
fn collect(group: &usvg::Group, boxes: &mut Vec<(String, usvg::Rect)>) {
    for node in group.children() {
        match node {
            usvg::Node::Group(group) => collect(group, boxes),
            usvg::Node::Text(text) => {
                let words = text.chunks().iter().map(|chunk| chunk.text()).collect::<String>();
                boxes.push((words, text.flattened().abs_bounding_box()));
            }
            _ => {}
        }
    }
}
