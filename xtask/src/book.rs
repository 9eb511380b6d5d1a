//! The book's links: every page is in the summary, and every relative link leads to a file.
//!
//! Called by `lint`; the book itself is built by mdBook where somebody wants HTML.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// Checks the pages below `source`, and says all that is wrong at once.
pub(crate) fn links_lead_somewhere(source: &Path) -> anyhow::Result<()> {
    let pages = pages(source)?;
    let mut wrong = Vec::new();
    let summary: BTreeSet<PathBuf> =
        links(&source.join("SUMMARY.md"))?.into_iter().map(|link| source.join(link)).collect();
    for page in &pages {
        if !summary.contains(page) && !page.ends_with("SUMMARY.md") {
            wrong.push(format!("{} is not in SUMMARY.md", page.display()));
        }
        let directory = page.parent().unwrap_or(source);
        let dead = |link: &String| !directory.join(link).is_file();
        let links = links(page)?;
        wrong.extend(
            links
                .iter()
                .filter(|link| dead(link))
                .map(|link| format!("{}: {link}", page.display())),
        );
    }
    if !wrong.is_empty() {
        bail!("the book has pages or links that lead nowhere:\n{}", wrong.join("\n"));
    }
    Ok(())
}

fn pages(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let named = || format!("cannot read {}", directory.display());
    let mut pages = Vec::new();
    for entry in fs::read_dir(directory).with_context(named)? {
        let path = entry.with_context(named)?.path();
        if path.is_dir() {
            pages.extend(self::pages(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    Ok(pages)
}

/// The relative targets of `[text](target)`, without their anchors.
fn links(page: &Path) -> anyhow::Result<Vec<String>> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let files = targets.map(|(target, _)| target.split('#').next().unwrap_or_default());
    Ok(files.filter(|file| !file.is_empty() && !file.contains("://")).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_is_whole() {
        links_lead_somewhere(&crate::run::root().join("docs/src")).expect("whole");
    }

    #[test]
    fn a_dead_link_and_a_forgotten_page_are_found() {
        let book = std::env::temp_dir().join(format!("gleaner-book-{}", std::process::id()));
        fs::create_dir_all(&book).expect("made");
        fs::write(book.join("SUMMARY.md"), "[A](a.md)").expect("written");
        fs::write(book.join("a.md"), "[x](gone.md) [y](#here) [z](https://example.org)")
            .expect("written");
        fs::write(book.join("b.md"), "").expect("written");
        let told = links_lead_somewhere(&book).expect_err("two faults").to_string();
        fs::remove_dir_all(&book).expect("removed");
        assert!(
            told.contains("a.md: gone.md") && told.contains("b.md is not in SUMMARY.md"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 3, "{told}");
    }
}
