//! Loads a recipe from its file, with its schema, and checks its templates.

use std::io;
use std::path::{Path, PathBuf};

use super::recipe::Recipe;
use super::schema::{AnswerSchema, SchemaError};
use super::template::{self, TemplateError};

/// Reason why a recipe is invalid.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("can't read the recipe {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the recipe {}: {what}", path.display())]
    Wrong { path: PathBuf, what: String },
    #[error("the recipe {}: {source}", path.display())]
    Template { path: PathBuf, source: TemplateError },
    #[error("the recipe {}: {source}", path.display())]
    Schema { path: PathBuf, source: SchemaError },
}

impl Recipe {
    /// # Errors
    /// If the file can't be read or has an unknown or wrong field, a template with an unknown name,
    /// or an invalid schema.
    pub fn load(path: &Path) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        let wrong = |what| RecipeError::Wrong { path: path.to_owned(), what };
        let mut recipe: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if recipe.name.is_empty() {
            recipe.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        recipe.check().map_err(wrong)?;
        template::check(&recipe)
            .map_err(|source| RecipeError::Template { path: path.to_owned(), source })?;
        if let Some(file) = &recipe.schema_file {
            let file = path.parent().unwrap_or(Path::new("")).join(file);
            let schema = AnswerSchema::load(&file)
                .map_err(|source| RecipeError::Schema { path: path.to_owned(), source })?;
            recipe.schema = Some(schema);
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipes_that_come_along_are_recipes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/recipes");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                names.push(Recipe::load(&path).unwrap().name);
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 6, "{names:?}");
    }

    #[test]
    fn what_a_recipe_can_not_say_is_told_with_its_mend() {
        let said = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let head = "name = \"r\"\nmodel = \"m\"\nprompt = \"{{ text }}\"\n";
            std::fs::write(file.path(), format!("{head}{text}")).unwrap();
            Recipe::load(file.path()).unwrap_err().to_string()
        };
        assert!(said("overlap_tokens = 5").contains("at most half"));
        assert!(said("part_tokens = 0").contains("at least 1"));
        assert!(said("[parameters]\nmessages = []").contains("'messages'"));
        assert!(said("[reduce]\nprompt = \"x\"").contains("part_tokens"));
        assert!(said("[columns]\na = \"/a\"").contains("schema"));
        assert!(said("schema = \"none.json\"").contains("none.json"));
        assert!(said("promt = 1").contains("promt"));
    }
}
