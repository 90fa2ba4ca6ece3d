//! Everything that the bindings declare, read back from bindgen's output: so the proof can't forget anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::{Fields, Item, Type};

/// What our headers declare of Xen's.
#[derive(Default)]
pub struct Inventory {
    /// Functions of both libraries.
    pub functions: Vec<String>,
    /// Constants.
    pub constants: Vec<String>,
    /// Numbers: enumerations and other integers, by their C spelling.
    pub scalars: Vec<Named>,
    /// Types that we only hold pointers to.
    pub opaque: Vec<String>,
    /// Types of callbacks; they are in functions.h, and proven with the prototypes.
    pub callbacks: Vec<String>,
    /// Structs with a layout.
    pub structs: Vec<Struct>,
    /// Every name that types.h introduces and Xen's headers have too.
    pub renamed: BTreeSet<String>,
}

/// A type that C may call by another name than Rust.
pub struct Named {
    pub name: String,
    /// `enum name` if there is no typedef.
    pub spelling: &'static str,
}

pub struct Struct {
    pub name: String,
    /// Ends before theirs does.
    pub prefix: bool,
    pub fields: Vec<Field>,
}

/// A member with the way to it, like `u.operation_complete.rc`.
pub struct Field {
    pub path: String,
    pub kind: FieldKind,
}

#[derive(PartialEq, Eq)]
pub enum FieldKind {
    /// Has the same type as theirs.
    Leaf,
    /// A struct or union without a name of its own; its members are listed too.
    Aggregate,
    /// Only where it starts is ours to know.
    Rest,
}

/// Not Xen's: our own helpers, what bindgen makes up, and the compiler's.
fn is_foreign(name: &str) -> bool {
    let ours = name.starts_with("xenlight_") || name.starts_with("XENLIGHT_");
    let made_up = name.starts_with("_bindgen_ty_") || name.contains("__bindgen_ty_");
    let compiler =
        matches!(name, "va_list" | "__gnuc_va_list" | "__builtin_va_list" | "__va_list_tag" | "__va_list");
    ours || made_up || compiler
}

/// bindgen appends `_` to a C name that is a keyword of Rust.
fn c_name(rust: &syn::Ident) -> String {
    let name = rust.to_string();
    match name.strip_suffix('_') {
        Some(stem) if syn::parse_str::<syn::Ident>(stem).is_err() => stem.to_owned(),
        _ => name,
    }
}

/// The last word of a type's path.
fn last_word(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

impl Inventory {
    /// Adds what one of bindgen's files declares; `types_h` is the header with the names of types.
    pub fn add(&mut self, rust: &str, types_h: &Path) -> Result<(), String> {
        let file = syn::parse_file(rust).map_err(|e| format!("can't read bindgen's output: {e}"))?;
        let types = read(types_h)?;

        let mut aggregates = BTreeMap::new();
        for item in &file.items {
            match item {
                Item::Struct(item) => drop(aggregates.insert(item.ident.to_string(), fields(&item.fields))),
                Item::Union(item) => {
                    drop(aggregates.insert(item.ident.to_string(), fields(&Fields::Named(item.fields.clone()))));
                }
                _ => {}
            }
        }

        for item in &file.items {
            match item {
                Item::Const(item) if item.ident != "_" => self.add_constant(item.ident.to_string()),
                Item::Type(item) => self.add_alias(item.ident.to_string(), &item.ty, &aggregates, &types),
                _ => {}
            }
        }
        for (name, members) in &aggregates {
            if members.iter().any(|(member, _)| member == "__library") {
                let functions = members.iter().map(|(member, _)| member.clone());
                self.functions.extend(functions.filter(|member| member != "__library"));
            } else if !is_foreign(name) {
                self.add_struct(name, members, &aggregates);
            }
        }
        Ok(())
    }

    fn add_constant(&mut self, name: String) {
        if !is_foreign(&name) {
            self.renamed.insert(name.clone());
            self.constants.push(name);
        }
    }

    fn add_alias(&mut self, name: String, ty: &Type, aggregates: &Aggregates, types_h: &str) {
        if is_foreign(&name) {
            return;
        }
        let target = last_word(ty).unwrap_or_default();
        if target == "Option" {
            self.callbacks.push(name);
            return;
        }
        self.renamed.insert(name.clone());
        if !aggregates.contains_key(&target) {
            let tag_only = types_h.contains(&format!("\nenum {name} {{"));
            self.scalars.push(Named { name, spelling: if tag_only { "enum " } else { "" } });
        }
        // Else another name of an opaque struct, which is listed as that struct's.
    }

    fn add_struct(&mut self, name: &str, members: &Members, aggregates: &Aggregates) {
        self.renamed.insert(name.to_owned());
        if members.iter().all(|(member, _)| member == "_unused") {
            self.opaque.push(name.to_owned());
            return;
        }
        let mut fields = Vec::new();
        collect(members, "", aggregates, &mut fields);
        self.structs.push(Struct { name: name.to_owned(), prefix: false, fields });
    }

    /// Looks up which structs the header calls prefixes; Rust's declarations don't show it.
    pub fn mark_prefixes(&mut self, layouts_h: &Path) -> Result<(), String> {
        let text = read(layouts_h)?;
        for item in &mut self.structs {
            let prefix = text.contains(&format!("struct XENLIGHT_PREFIX({}) {{", item.name));
            let layout = text.contains(&format!("struct XENLIGHT_LAYOUT({}) {{", item.name));
            if prefix == layout {
                return Err(format!(
                    "{}: struct {} must be declared with XENLIGHT_LAYOUT or XENLIGHT_PREFIX",
                    layouts_h.display(),
                    item.name
                ));
            }
            item.prefix = prefix;
        }
        Ok(())
    }
}

type Members = Vec<(String, Type)>;
type Aggregates = BTreeMap<String, Members>;

fn fields(fields: &Fields) -> Members {
    let named = fields.iter().filter_map(|field| Some((c_name(field.ident.as_ref()?), field.ty.clone())));
    named.collect()
}

fn collect(members: &Members, path: &str, aggregates: &Aggregates, fields: &mut Vec<Field>) {
    for (name, ty) in members {
        let path = format!("{path}{name}");
        let word = last_word(ty).unwrap_or_default();
        let nested = aggregates.get(&word).filter(|_| word.contains("__bindgen_ty_"));
        let kind = match nested {
            Some(_) => FieldKind::Aggregate,
            None if word == "xenlight_rest" => FieldKind::Rest,
            None => FieldKind::Leaf,
        };
        fields.push(Field { path: path.clone(), kind });
        if let Some(nested) = nested {
            collect(nested, &format!("{path}."), aggregates, fields);
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("can't read {}: {e}", path.display()))
}
