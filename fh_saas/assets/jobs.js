// What htmx leaves open for the job components: tell screen readers of a change, stop where a job is gone, and show that the server is away
const box = e => e.target.closest?.('.fh-job')

function say(b, text) {
  const p = b?.querySelector('.fh-job-say')
  if (p && text && p.textContent !== text) p.textContent = text
}

function told(e) {
  const b = box(e)
  if (!b) return
  b.classList.remove('fh-job-away')
  say(b, b.querySelector('[data-say]')?.dataset.say)
}

function away(e) {
  const b = box(e)
  b?.classList.add('fh-job-away')
  say(b, b?.dataset.away)
}

document.addEventListener('htmx:afterSwap', told)
document.addEventListener('htmx:sseMessage', told)
document.addEventListener('htmx:sendError', away)
document.addEventListener('htmx:sseError', away)
document.addEventListener('htmx:responseError', e => {
  const form = e.target.closest?.('.fh-job-button'), b = box(e), x = e.detail.xhr
  if (form) {
    const p = form.querySelector('.fh-job-alert')
    const plain = /^text\/plain/.test(x.getResponseHeader('content-type') || '') && x.responseText.length < 300
    p.textContent = plain ? x.responseText : form.dataset.refused
    p.hidden = false
  } else if (b && x.status === 404) {       // gone, or nobody is logged in any more: asking again would not help
    const p = document.createElement('p')
    p.className = 'fh-job-now fh-job-gone'
    p.textContent = b.dataset.gone
    b.querySelector('.fh-job-now')?.replaceWith(p)
    say(b, b.dataset.gone)
  } else if (b) away(e)
})
