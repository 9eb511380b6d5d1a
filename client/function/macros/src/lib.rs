//! The attribute `#[gleaner_function::function]`: exports a Rust function's descriptor under Gleaner's C ABI.
//!
//! Only turns one item into code; what that code does is in `gleaner-function`.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Error, FnArg, Ident, ItemFn, Path, Token, Type,
    parse::{Parse, ParseStream},
    parse_macro_input,
    spanned::Spanned,
};

/// Makes a function callable by clients, under its own name.
///
/// Without arguments it takes `(input: &[u8], output: &mut Output)`, and may take a `&Context` after them. With
/// `#[function(init = path)]` its first argument is `&mut State`, where `path` is a `fn() -> Result<State, Error>`
/// that runs once a worker thread. It returns `Result<(), Error>`.
#[proc_macro_attribute]
pub fn function(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(arguments as Arguments);
    let item = parse_macro_input!(item as ItemFn);
    expand(&arguments, &item).unwrap_or_else(Error::into_compile_error).into()
}

/// What stands in the attribute's parentheses.
struct Arguments {
    init: Option<Path>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        if input.is_empty() {
            return Ok(Self { init: None });
        }
        let name: Ident = input.parse()?;
        if name != "init" {
            return Err(Error::new(name.span(), "the only argument is `init = path`"));
        }
        input.parse::<Token![=]>()?;
        Ok(Self { init: Some(input.parse()?) })
    }
}

fn expand(arguments: &Arguments, item: &ItemFn) -> syn::Result<proc_macro2::TokenStream> {
    let signature = &item.sig;
    if signature.asyncness.is_some() || !signature.generics.params.is_empty() {
        return Err(Error::new(signature.span(), "a function is neither async nor generic"));
    }
    let (state, plain) = match &arguments.init {
        Some(_) => (state_type(item)?, signature.inputs.len() - 1),
        None => (quote!(()), signature.inputs.len()),
    };
    let passes_context = match plain {
        2 => false,
        3 => true,
        _ => {
            let wanted = "a function takes `input: &[u8], output: &mut Output`, then `&Context` if it wants it; \
                          `&mut State` comes first with `init`";
            return Err(Error::new(signature.inputs.span(), wanted));
        }
    };
    let name = &signature.ident;
    let symbol = format!("gleaner_fn_{name}");
    let descriptor = format_ident!("GLEANER_FN_{}", name.to_string().to_uppercase());
    let give_state = arguments.init.iter().map(|_| quote!(state,));
    let give_context = passes_context.then(|| quote!(, context));
    let (init, fini) = match &arguments.init {
        Some(make) => (init_hook(make, &state), fini_hook(&state)),
        None => (quote!(::core::option::Option::None), quote!(::core::option::Option::None)),
    };
    Ok(quote! {
        #item

        const _: () = {
            unsafe extern "C" fn invoke(
                context: *mut ::gleaner_function::abi::RawContext,
                input: *const ::core::ffi::c_void,
                input_len: usize,
                output: *mut ::core::ffi::c_void,
                output_capacity: usize,
                output_len: *mut usize,
            ) -> i32 {
                // SAFETY: the worker's arguments, handed on as they are.
                unsafe {
                    ::gleaner_function::invoke::<#state>(
                        context, input, input_len, output, output_capacity, output_len,
                        |state, input, output, context| {
                            let _ = (&state, &context);
                            #name(#(#give_state)* input, output #give_context)
                        },
                    )
                }
            }

            #[unsafe(export_name = #symbol)]
            #[used]
            static #descriptor: ::gleaner_function::abi::RawFunction = ::gleaner_function::abi::RawFunction {
                abi_version: ::gleaner_function::abi::VERSION,
                flags: 0,
                invoke: ::core::option::Option::Some(invoke),
                init: #init,
                fini: #fini,
            };
        };
    })
}

/// `T` of the first argument's `&mut T`.
fn state_type(item: &ItemFn) -> syn::Result<proc_macro2::TokenStream> {
    let first = item.sig.inputs.first();
    match first {
        Some(FnArg::Typed(argument)) => match &*argument.ty {
            Type::Reference(reference) if reference.mutability.is_some() => {
                let state = &reference.elem;
                Ok(quote!(#state))
            }
            other => {
                Err(Error::new(other.span(), "with `init`, the first argument is `&mut State`"))
            }
        },
        _ => Err(Error::new(item.sig.span(), "with `init`, the first argument is `&mut State`")),
    }
}

fn init_hook(make: &Path, state: &proc_macro2::TokenStream) -> proc_macro2::TokenStream {
    quote! {{
        unsafe extern "C" fn init(
            context: *mut ::gleaner_function::abi::RawContext,
            made: *mut *mut ::core::ffi::c_void,
        ) -> i32 {
            // SAFETY: the worker's arguments, handed on as they are.
            unsafe { ::gleaner_function::init::<#state>(context, made, #make) }
        }
        ::core::option::Option::Some(init)
    }}
}

fn fini_hook(state: &proc_macro2::TokenStream) -> proc_macro2::TokenStream {
    quote! {
        ::core::option::Option::Some(::gleaner_function::fini::<#state>)
    }
}
